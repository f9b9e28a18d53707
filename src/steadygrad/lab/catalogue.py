"""The experiments, oldest paper first."""

from __future__ import annotations

from steadygrad.lab.cauchy1847 import cauchy1847
from steadygrad.lab.experiment import Experiment
from steadygrad.lab.glorot2010 import glorot2010
from steadygrad.lab.hanin2018 import hanin2018
from steadygrad.lab.he2015 import he2015
from steadygrad.lab.klambauer2017 import klambauer2017
from steadygrad.lab.pascanu2013 import pascanu2013
from steadygrad.lab.yang2019 import yang2019

EXPERIMENTS: tuple[Experiment, ...] = (
    cauchy1847,
    glorot2010,
    pascanu2013,
    he2015,
    klambauer2017,
    hanin2018,
    yang2019,
)
