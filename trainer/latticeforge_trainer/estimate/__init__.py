"""What training costs, told from a model's config alone; torch-free, shared with the operator."""
