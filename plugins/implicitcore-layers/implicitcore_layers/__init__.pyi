"""The public names, each with the module that defines it; read at run time too."""

from implicitcore_layers.continuous_deq import ContinuousDEQ as ContinuousDEQ
from implicitcore_layers.deq import DEQ as DEQ
from implicitcore_layers.homoode import HomoODE as HomoODE
from implicitcore_layers.neural_ode import NeuralODE as NeuralODE
from implicitcore_layers.skip_deq import SkipDEQ as SkipDEQ
from implicitcore_layers.skip_deq import SkipRegDEQ as SkipRegDEQ
