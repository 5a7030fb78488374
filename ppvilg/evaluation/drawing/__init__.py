"""Drawing of many prompts in several processes, the prompts, and folders of finished pictures."""
