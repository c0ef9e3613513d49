"""The public names, each with the module that defines it; read at run time too."""

from implicitcore_torchdiffeq.adams import ExplicitAdams as ExplicitAdams
from implicitcore_torchdiffeq.adams import FixedAdams as FixedAdams
from implicitcore_torchdiffeq.adams import ImplicitAdams as ImplicitAdams
from implicitcore_torchdiffeq.adaptive import AdaptiveHeun as AdaptiveHeun
from implicitcore_torchdiffeq.adaptive import Bosh3 as Bosh3
from implicitcore_torchdiffeq.adaptive import Dopri5 as Dopri5
from implicitcore_torchdiffeq.adaptive import Dopri8 as Dopri8
from implicitcore_torchdiffeq.adaptive import Fehlberg2 as Fehlberg2
from implicitcore_torchdiffeq.fixed import RK4 as RK4
from implicitcore_torchdiffeq.fixed import Euler as Euler
from implicitcore_torchdiffeq.fixed import Heun2 as Heun2
from implicitcore_torchdiffeq.fixed import Heun3 as Heun3
from implicitcore_torchdiffeq.fixed import Midpoint as Midpoint
from implicitcore_torchdiffeq.through_scipy import ScipySolver as ScipySolver
