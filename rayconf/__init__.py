"""What a run is (one typed config) and where it runs."""

from rayconf.errors import UserError
from rayconf.loading import load_config
from rayconf.run_config import RunConfig

__all__ = ["RunConfig", "UserError", "load_config"]
