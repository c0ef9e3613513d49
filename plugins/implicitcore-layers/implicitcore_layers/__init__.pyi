"""The public names, each with the module that defines it; read at run time too."""

from implicitcore_layers.cells.base import Cell as Cell
from implicitcore_layers.cells.base import Certificate as Certificate
from implicitcore_layers.cells.base import Preset as Preset
from implicitcore_layers.cells.contractive import ContractiveCell as ContractiveCell
from implicitcore_layers.cells.homoode import HomoODECifar10 as HomoODECifar10
from implicitcore_layers.cells.homoode import HomoODECifar100 as HomoODECifar100
from implicitcore_layers.cells.homoode import HomoODEField as HomoODEField
from implicitcore_layers.cells.homoode import HomoODETinyImageNet as HomoODETinyImageNet
from implicitcore_layers.cells.monotone import MonotoneCell as MonotoneCell
from implicitcore_layers.cells.multiscale import MultiscaleCell as MultiscaleCell
from implicitcore_layers.cells.multiscale import MultiscaleImageNet as MultiscaleImageNet
from implicitcore_layers.cells.multiscale import MultiscaleLarge as MultiscaleLarge
from implicitcore_layers.cells.multiscale import MultiscaleTiny as MultiscaleTiny
from implicitcore_layers.cells.paper_mlp import PaperMLP as PaperMLP
from implicitcore_layers.continuous_deq import ContinuousDEQ as ContinuousDEQ
from implicitcore_layers.deq import DEQ as DEQ
from implicitcore_layers.homoode import HomoODE as HomoODE
from implicitcore_layers.multiscale import MultiscaleContinuousDEQ as MultiscaleContinuousDEQ
from implicitcore_layers.multiscale import MultiscaleDEQ as MultiscaleDEQ
from implicitcore_layers.multiscale import MultiscaleNeuralODE as MultiscaleNeuralODE
from implicitcore_layers.multiscale import MultiscaleSkipDEQ as MultiscaleSkipDEQ
from implicitcore_layers.multiscale import MultiscaleSkipRegDEQ as MultiscaleSkipRegDEQ
from implicitcore_layers.neural_ode import AugmentedNeuralODE as AugmentedNeuralODE
from implicitcore_layers.neural_ode import NeuralODE as NeuralODE
from implicitcore_layers.skip_deq import SkipDEQ as SkipDEQ
from implicitcore_layers.skip_deq import SkipRegDEQ as SkipRegDEQ
