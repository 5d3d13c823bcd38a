"""Somebody else's code in a process of its own, which can harm nothing but its own result.

parent (holds inputs, expected outputs and the clock)
  └ launcher (fork_server.py: has imported PyTorch and the harness, and never asked for a GPU;
      forks, and reaps all children)
      └ the solution's process (contestant.py: builds the solution and calls it when told to)

The parent's side is solution_process.py and launcher.py, and imports nothing of the other side's;
they share one block of memory for the tensors and exchange messages of fixed size (channel.py).
Nothing that a solution's process says is unpickled or evaluated. confinement.py holds what the
kernel enforces, processes.py how to find and end whatever a solution has started.
"""
