"""What a training tells: metrics of updates and episodes, tables, progress bars, the layout of TensorBoard."""
