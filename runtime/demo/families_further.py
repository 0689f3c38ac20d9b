"""Everyday functions that only training asks for, so that the model has read more of English than it is asked in."""

from __future__ import annotations

from sirocco.runtime.demo.families_clinic import CLINIC
from sirocco.runtime.demo.families_culture import CULTURE
from sirocco.runtime.demo.families_data import DATA
from sirocco.runtime.demo.families_devices import DEVICES
from sirocco.runtime.demo.families_industry import INDUSTRY
from sirocco.runtime.demo.families_life import LIFE
from sirocco.runtime.demo.families_media import MEDIA
from sirocco.runtime.demo.families_nature import NATURE
from sirocco.runtime.demo.families_office import OFFICE
from sirocco.runtime.demo.families_operations import OPERATIONS_OF
from sirocco.runtime.demo.families_private import PRIVATE
from sirocco.runtime.demo.families_public import PUBLIC
from sirocco.runtime.demo.families_trade import TRADE
from sirocco.runtime.demo.families_travel import TRAVEL

__all__ = ["FURTHER_FAMILIES"]

FURTHER_FAMILIES = (
    *CLINIC,
    *CULTURE,
    *DATA,
    *DEVICES,
    *INDUSTRY,
    *LIFE,
    *MEDIA,
    *NATURE,
    *OFFICE,
    *OPERATIONS_OF,
    *PRIVATE,
    *PUBLIC,
    *TRADE,
    *TRAVEL,
)
