"""What users and authors of data sets, models and tables need, each with its module."""

from implicitcore_lab.data import Dataset as Dataset
from implicitcore_lab.data import DataSource as DataSource
from implicitcore_lab.data import Split as Split
from implicitcore_lab.data import standardised as standardised
from implicitcore_lab.diagnosis.diagnose import diagnose as diagnose
from implicitcore_lab.diagnosis.pictures import draw_diagnosis as draw_diagnosis
from implicitcore_lab.diagnosis.record import Diagnosis as Diagnosis
from implicitcore_lab.diagnosis.record import Finding as Finding
from implicitcore_lab.errors import DataError as DataError
from implicitcore_lab.models import ModelBuilder as ModelBuilder
from implicitcore_lab.papers.table import Budget as Budget
from implicitcore_lab.papers.table import Claim as Claim
from implicitcore_lab.papers.table import Column as Column
from implicitcore_lab.papers.table import Figures as Figures
from implicitcore_lab.papers.table import Job as Job
from implicitcore_lab.papers.table import Results as Results
from implicitcore_lab.papers.table import Row as Row
from implicitcore_lab.papers.table import Table as Table
from implicitcore_lab.pixels import Pixels as Pixels
from implicitcore_lab.tuning.options import TuningOptions as TuningOptions
from implicitcore_lab.tuning.result import Tuned as Tuned
from implicitcore_lab.tuning.tune import tune as tune
