"""What an author of data sets and models needs, each with the module that defines it."""

from implicitcore_lab.data import Dataset as Dataset
from implicitcore_lab.data import DataSource as DataSource
from implicitcore_lab.data import Split as Split
from implicitcore_lab.data import standardised as standardised
from implicitcore_lab.errors import DataError as DataError
from implicitcore_lab.models import ModelBuilder as ModelBuilder
from implicitcore_lab.pixels import Pixels as Pixels
