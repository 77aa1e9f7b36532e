"""What all sections of a run share."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def split_text(value: object) -> object:
    """One text, as flags give it, lists items separated by commas."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


Listed = Annotated[tuple[str, ...], BeforeValidator(split_text)]


class Section(BaseModel):
    """Base of all sections: immutable, unknown fields refused, NaN and infinity refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
