"""What the commands need: a LeNet, data to train it on, the training loop, its pictures.

Open ``training.py`` first: it is the loop. Each of the other files is about one thing:

- ``lenet``: the network
- ``dataset``: what a data set is, and the random shifts; ``digits`` and ``idx`` load one
- ``optimizers``: the optimizers that the commands know, and their learning rates here
- ``run``: a folder that holds a run, and how it starts and goes on
- ``checkpoint``: a run's state on disk, written so that no crash can spoil it
- ``repeatable``: what makes torch compute the same bits again
- ``progress``, ``report``, ``plots``: what a person sees
"""
