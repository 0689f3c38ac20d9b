"""Everyday functions as tables: their names, parameters and the ways people ask for them."""

from __future__ import annotations

from sirocco.runtime.demo.families.clinic import CLINIC
from sirocco.runtime.demo.families.common import COMMON
from sirocco.runtime.demo.families.culture import CULTURE
from sirocco.runtime.demo.families.data import DATA
from sirocco.runtime.demo.families.devices import DEVICES
from sirocco.runtime.demo.families.eating import EATING
from sirocco.runtime.demo.families.held_out import HELD_OUT
from sirocco.runtime.demo.families.hobbies import HOBBIES
from sirocco.runtime.demo.families.home import HOME
from sirocco.runtime.demo.families.industry import INDUSTRY
from sirocco.runtime.demo.families.life import LIFE
from sirocco.runtime.demo.families.media import MEDIA
from sirocco.runtime.demo.families.money import MONEY
from sirocco.runtime.demo.families.nature import NATURE
from sirocco.runtime.demo.families.occasions import OCCASIONS
from sirocco.runtime.demo.families.office import OFFICE
from sirocco.runtime.demo.families.operations import OPERATIONS
from sirocco.runtime.demo.families.people import PEOPLE
from sirocco.runtime.demo.families.private import PRIVATE
from sirocco.runtime.demo.families.public import PUBLIC
from sirocco.runtime.demo.families.roads import ROADS
from sirocco.runtime.demo.families.school import SCHOOL
from sirocco.runtime.demo.families.sport import SPORT
from sirocco.runtime.demo.families.town import TOWN
from sirocco.runtime.demo.families.trade import TRADE
from sirocco.runtime.demo.families.travel import TRAVEL
from sirocco.runtime.demo.families.work import WORK

__all__ = ["FAMILIES", "FURTHER_FAMILIES", "HELD_OUT_FAMILIES"]

FAMILIES = (*COMMON, *HOME, *WORK, *TOWN)
FURTHER_FAMILIES = (  # only training asks for them, so that it has read more of English than the test speaks
    *CLINIC,
    *CULTURE,
    *DATA,
    *DEVICES,
    *INDUSTRY,
    *LIFE,
    *MEDIA,
    *NATURE,
    *OFFICE,
    *OPERATIONS,
    *PRIVATE,
    *PUBLIC,
    *TRADE,
    *TRAVEL,
    *EATING,
    *HOBBIES,
    *MONEY,
    *OCCASIONS,
    *PEOPLE,
    *ROADS,
    *SCHOOL,
    *SPORT,
)
HELD_OUT_FAMILIES = HELD_OUT
