"""Prediction: estimating the values of a given policy. `TD(env, policy=..., alpha=...).learn(n).v` are its state values."""

from .base import Prediction as Prediction
from .eligibility import EmphaticTD as EmphaticTD
from .eligibility import TDLambda as TDLambda
from .eligibility import TrueOnlineTD as TrueOnlineTD
from .gradient import GTD2 as GTD2
from .gradient import TDC as TDC
from .least_squares import LSTD as LSTD
from .least_squares import RecursiveLSTD as RecursiveLSTD
from .returns import LambdaReturn as LambdaReturn
from .returns import MonteCarlo as MonteCarlo
from .td import TD as TD
from .td import NStepTD as NStepTD

__all__ = [
    "GTD2",
    "LSTD",
    "TD",
    "TDC",
    "EmphaticTD",
    "LambdaReturn",
    "MonteCarlo",
    "NStepTD",
    "Prediction",
    "RecursiveLSTD",
    "TDLambda",
    "TrueOnlineTD",
]
