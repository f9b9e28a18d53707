"""The experiments, oldest paper first."""

from __future__ import annotations

from steadygrad.lab.balduzzi2017 import balduzzi2017
from steadygrad.lab.brock2021 import brock2021
from steadygrad.lab.cauchy1847 import cauchy1847
from steadygrad.lab.cohen2021 import cohen2021
from steadygrad.lab.de2020 import de2020
from steadygrad.lab.experiment import Experiment
from steadygrad.lab.glorot2010 import glorot2010
from steadygrad.lab.hanin2018 import hanin2018
from steadygrad.lab.he2015 import he2015
from steadygrad.lab.ioffe2015 import ioffe2015
from steadygrad.lab.jozefowicz2015 import jozefowicz2015
from steadygrad.lab.kingma2015 import kingma2015
from steadygrad.lab.klambauer2017 import klambauer2017
from steadygrad.lab.pascanu2013 import pascanu2013
from steadygrad.lab.pennington2017 import pennington2017
from steadygrad.lab.polyak1964 import polyak1964
from steadygrad.lab.roberts2022 import roberts2022
from steadygrad.lab.saxe2014 import saxe2014
from steadygrad.lab.schoenholz2017 import schoenholz2017
from steadygrad.lab.wang2022 import wang2022
from steadygrad.lab.wortsman2023 import wortsman2023
from steadygrad.lab.xiao2018 import xiao2018
from steadygrad.lab.xiong2020 import xiong2020
from steadygrad.lab.yang2019 import yang2019
from steadygrad.lab.yang2021 import yang2021
from steadygrad.lab.zhang2019 import zhang2019

EXPERIMENTS: tuple[Experiment, ...] = (
    cauchy1847,
    polyak1964,
    glorot2010,
    pascanu2013,
    saxe2014,
    he2015,
    ioffe2015,
    jozefowicz2015,
    kingma2015,
    balduzzi2017,
    klambauer2017,
    pennington2017,
    schoenholz2017,
    hanin2018,
    xiao2018,
    yang2019,
    zhang2019,
    de2020,
    xiong2020,
    brock2021,
    cohen2021,
    yang2021,
    roberts2022,
    wang2022,
    wortsman2023,
)
