"""Files that describe clusters: machines of one's own, Google Cloud, Kubernetes, an AWS account, the workers' image."""
