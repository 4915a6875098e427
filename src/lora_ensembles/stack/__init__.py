"""M members as one layer: the stacked layers, their buffers, seeds and dropout, and PEFT on either side."""
