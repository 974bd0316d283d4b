"""Who has which data: source, then labels and keys, then partitioner, then each client's examples.

`simulation.partition.task.partitioned_task` puts it together; nothing is read before it is needed.
"""
