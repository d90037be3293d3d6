"""What a bundle may change at no bits, tuned end to end: codes stay, scales, norms and biases follow the dense model.

student.py       the model with encoded matrices whose scales are parameters
distillation.py  the loss: KL(dense model || student) on every token
tune.py          Adam, its schedule, the held-out text, time and interruptions
"""
