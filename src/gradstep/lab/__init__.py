"""What the commands need: a LeNet, data to train it on, the training loop, its pictures.

Open ``training`` first: it is the loop. Each of the other files is about one thing:

- ``lenet``: the network
- ``dataset``: what a data set is, and the random shifts; ``digits`` and ``idx`` load one
- ``optimizers``: the optimizers that the commands know by name, and their learning rates here
- ``settings``: what a run was asked to do
- ``run``: a folder that holds a run, and how it begins and goes on
- ``session``: a run from where it stands to its end
- ``checkpoint``: a run's state on disk; ``atomic``: how a file is written that no crash can spoil
- ``repeatable``: what makes torch compute the same bits again
- ``progress``, ``report``, ``plots``: what a person sees
- ``errors``: what can go wrong
- ``bench``: how long a step takes, ours and torch's
- ``race``: a race of several rules, and its folder; ``race_worker``: one run of it;
  ``race_pool``: the processes that make runs; ``race_session``: from where it stands to its end
- ``race_report``, ``race_page``: its table and its page; ``intervals``: how sure a mean is
- ``surface``: losses over two weights, and the paths on them; ``model``: a user's own network
"""
