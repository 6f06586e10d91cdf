"""What all tests share."""

import torch

torch.set_num_threads(1)  # the models are tiny, and other processes want the machine's cores, too
