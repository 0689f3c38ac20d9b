"""English words as tables: names, cities, things, what functions and their parameters are called after."""

from __future__ import annotations

__all__ = [
    "ACTIONS",
    "BOOLEAN_PARAMETERS",
    "CITIES",
    "HELD_OUT_NOUNS",
    "HELD_OUT_NUMBER",
    "HELD_OUT_TEXT",
    "LOOKS",
    "NAMES",
    "NOUNS",
    "NUMBER_PARAMETERS",
    "STEMS",
    "TEXT_PARAMETERS",
    "THINGS",
    "UNITS",
    "WORDS",
    "words",
]


def words(text: str) -> list[str]:
    """The words of a table."""
    return text.split()


NAMES = words("""
Anna Ben Carla David Elena Felix Greta Hugo Ines Jonas Karin Leo Maria Nils Olga Paul Quentin Rosa Simon Tara
Uwe Vera Walter Xenia Yusuf Zoe Aisha Bruno Chen Dalia Emil Farah Goran Hana Igor Julia Kofi Lena Marco Nadia
Omar Petra Ravi Sofia Tomas Uma Viktor Wanda Yara Zane Alice Bob Carol Dan Eve Frank Grace Henry Irene Jack Kate
Liam Mia Noah Olivia Peter Ruth Sam Tina Victor Amir Bianca Cyrus Doris Edgar Fiona George Helga Ivan Jasmin
""")
CITIES = words("""
Paris London Berlin Madrid Rome Vienna Oslo Lisbon Prague Dublin Athens Warsaw Cairo Tokyo Delhi Lima Quito
Boston Chicago Denver Seattle Toronto Sydney Nairobi Lagos Dakar Tunis Seoul Hanoi Manila Zurich Geneva Basel
Munich Hamburg Lyon Nice Turin Milan Naples Porto Seville Bilbao Ghent Bergen Malmo Turku Riga Vilnius Krakow
Sofia Zagreb Split Izmir Ankara Haifa Muscat Doha Lahore Dhaka Kyoto Osaka Busan Perth Hobart Auckland Havana
Bogota Santiago Austin Miami Dallas
""")
WORDS = words("""
apple river stone window garden silver mountain paper candle bridge forest ocean rabbit guitar bottle pencil
market castle island dragon flower button ladder mirror pocket rocket saddle temple violin wagon yellow zebra
banana cherry lemon orange purple winter summer autumn spring engine battery camera hammer needle basket blanket
carpet curtain drawer feather glacier harbor insect jacket kettle lantern magnet napkin orchid parrot quartz
ribbon shadow thunder umbrella velvet walnut anchor beacon copper desert eagle falcon granite honey ivory jungle
kitten lizard marble nectar otter pepper quiver raven salmon timber urchin valley willow amber breeze cactus
daisy ember fossil ginger hazel iris jasper knight lotus meadow nickel onyx pebble quill robin sparrow tulip
vessel whisper yogurt zipper bicycle computer keyboard elephant dolphin penguin sandwich chocolate strawberry
hello world python music letter number planet science history teacher student doctor
acorn alley almond anthem apron arrow attic badge barrel basin bishop bonfire bracelet branch brass brick brush bucket
bugle bundle cabin cable canal canyon caravan cellar chapel chariot cheese chest chimney cider circus clover cobalt
comet
cookie coral cotton cradle crane crystal cushion dagger dapple dawn delta diary dome donkey drum dune dust echo
elbow elm
emerald fabric fern ferry fiddle finch flame flask fleece flute foam fountain fox frost fudge galaxy garlic gate gem
ghost
giraffe globe goblet grape gravel grove gull gust hail hammock hawk heron hickory hill hood horn hut icicle ink iron
jar
jewel juniper keel kelp kettle kiosk lake lamp lark latch leaf ledge lentil lilac lily linen loft log loom lynx
maple mast
melon mint mirage mist moss moth mule mustard nest nettle night noodle nut oak oat oboe olive opal orbit oven owl
oyster
paddle palm panda paste peach pear pearl peat petal piano pigeon pillow pine plum poem pond poppy potato prism pumpkin
puzzle quail quince raft rain raisin ranch reed reef ridge ring roof rope rose ruby rust sail salt sand satin scarf
seal
seed shade shell shore silk slate sled smoke snail snow soap sock soup spark spice spoon squid stamp star statue steam
stork storm straw sugar sunset swan sword syrup table tank tape tea tent thorn tide tiger tile toast torch tower trail
trout trumpet tulip turtle twig valve vase vault vine wafer wall wave wheat wheel whistle wing wolf wood wool wren
yard absence advice angle ankle answer aunt axis bacon ball bank bark bath battle beach bean bear beard beast bee beer
belief belt bird birth bite blade blood board body bomb bone boot boss bow bowl box boy brain bread breath bride brush
bubble bull bus bush cab cap car card care case cat cave chalk change chaos charm chin choice chord church city clay
cliff cloth cloud clue coal coat coin cold comfort cook cord corn corner couch country cousin cow crab crack cream
crime crop cross crowd crown cry culture cup current dad danger dark daughter day deal death deer degree dinner dirt
distance dog doll door dream dress drop duck ear earth east edge egg end energy error event evil eye face fact fall
fame family fan fate father fear feast fever finger fire fish fist flag flight flood flour fly fog food foot force
fork form fortune freedom friend frog fuel fun fur future game gas gift girl glory glove glue goat gold goose grain
grass grave habit hair half ham hand hat head health heart heat heel help herb hero hip hole home hook hope horse hour
house humor hunger ice image ink iron jaw jelly job joke joy kid king kiss knee knife knot ladle lady lamb land lane
law lead leg leopard lesson life lift light limb line lip liver logic love luck lung man meal meat milk mind mine minor
mode money monk month mood moon morning mouse mouth mud nail name navy neck news noise north nose note ocean oil onion
pain pair pan park path paw peace pen phone photo pie pig pillar pilot pin pipe pole pony pool porch power pride
prince prison proof queen rat rice road rock roof room root rug rule run scale sea seat shame shape sheep ship shirt
shoe shop shoulder sign sister skill skin skirt sky sleep slope smile snake son song soul sound south space sphere
spirit spot spy stair steel step stem stick stool store stove stream street string suit sun sugar table tail talent
talk taste tear thumb thread throat time tin toe tone tool tooth top toy trap tray tree truth uncle union value view
voice war water wax way web week weight west whale wheat wife wind wine wire wish witch woman word work world worm
wound wrist year youth zone
""")
NOUNS = words("""
weather order ticket invoice playlist recipe meeting event reminder alarm message email note task project user
account profile payment flight hotel room table restaurant taxi train bus route map photo video song album movie
book article report file folder document contract customer product price stock package shipment refund coupon
subscription course lesson exam student teacher patient appointment doctor medicine workout meal budget expense
salary loan tax currency temperature light lamp door window thermostat sensor camera robot printer device server
backup password comment review rating survey poll vote team player match game score league garden plant animal
pet car bike parking fuel charger battery contact calendar holiday gift card list item warehouse factory machine
job candidate interview campaign advert newsletter page website domain branch commit issue release build test
dataset table model image
""")
HELD_OUT_NOUNS = words("""
yacht telescope orchestra passport museum vaccine elevator pizza haircut submarine drone fountain bakery
tournament antenna library scooter wedding rental
""")
TEXT_PARAMETERS = words("""
title label category topic subject theme genre artist author brand model color material style owner department
group channel source target reason comment description keyword query text content note message tag destination
origin address country region language currency_name status_text product customer username nickname item folder
path mode_name device project team venue street platform version
""")
HELD_OUT_TEXT = words("chef sponsor flavor captain breed instrument landmark dialect fabric pilot")
NUMBER_PARAMETERS = words("""
count limit amount quantity size width height weight depth speed volume brightness level priority score rating
price budget age year page floor room seats guests nights minutes seconds hours days port radius temperature
max_results duration distance percent discount offset length capacity
""")
HELD_OUT_NUMBER = words("altitude voltage servings laps candles passengers dosage humidity")
BOOLEAN_PARAMETERS = words("""
urgent public private recursive verbose express gift_wrap notify repeat vegetarian insured refundable encrypted
compressed anonymous
""")
ACTIONS = words("""
accept activate adapt adjust admit adopt advise align allocate announce apply appoint approve assemble assess attach
attract award balance ban bill bless block boil boost bounce brew broadcast build bundle burn call capture carry carve
catch celebrate certify charge chase claim clean climb collect color combine complete confirm connect consult cook
copy
correct cover craft cross cut dance deal debate declare decorate defend deliver demand deny deposit describe design
detect develop dig dilute direct discuss dispatch display dispose distribute divide donate drain draw dress drill
drive
dry dump earn edit elect empty enable encode encourage enforce enjoy enlarge enter escort establish estimate evaluate
examine exchange exclude expand expect explain explore extend extract face fasten feed fetch fill film filter finance
fire fit fix flag flush focus fold forward frame free freeze fund gather generate grant greet grind group guard guess
guide handle hang harvest heat hide hire hold host hunt identify ignore illustrate import improve increase inform
inject
install insure introduce invent invest invite iron isolate issue join judge jump keep kick knock label land launch
lead
lease lend lift limit link load lower mail maintain manage map mark match melt mend merge mix monitor mount move
multiply
negotiate nominate notify observe obtain occupy offer operate order organize own pack paint park pass patch pause pay
peel perform permit photograph pick plant pour practise praise predict prepare present preserve press process produce
program promise promote protect prove provide pull pump punish purchase push queue question quit quote race raise
range
reach recharge recommend record recycle reduce refill refine refuse regulate reject release relocate remind render
renew
rent repeat replace report request rescue reset resolve restart restore restrict review reward rinse rotate sail
sample
scale scan scatter sculpt seal secure seize select sell serve settle sew shake shape share sharpen shift ship shorten
shut sign simulate sketch slice smooth solve sort spell split sponsor spray spread squeeze stack stamp store stretch
submit subtract supply support suspend swap sweep switch tag taste teach tear tell test throw tie toast touch tow
trade
train transfer transport treat trim tune twist unlock unpack update use vaccinate validate value visit wait walk warm
warn wash watch wax weigh weld whip widen wipe wrap
""")
THINGS = words("""
accident account actor agenda agreement aircraft airport alert allowance ambulance animation apartment appeal aquarium
archive arena armor article artwork asset assignment athlete attendance auction audience balcony ballot bandage banner
bargain barrier bedroom bench benefit beverage bill blend blog blueprint boat boiler bond bonus booth border boundary
bouquet breakfast broadcast brochure bulletin cafe cage cake campsite canvas cargo carriage cartoon casting catalog
cattle ceiling ceremony certificate chain chair challenge channel chapter charity chart checklist chorus cinema
circuit
claim class client clinic clock closet clothing coach coast code coffee collar collection college column comedy
committee
company complaint concert condition conference connection contest conveyor cottage counter courier court crew crop
cruise
cure curve cushion cylinder dairy deadline deal debate debt deck decision delivery demo dentist deposit desk dessert
detail diagram diet dinner diploma discussion dish display district donation dosage draft drawing drill drink driver
duty editor effect election embassy employee entry equipment error escort estate estimate evidence exhibit expedition
expert export extension fabric fair farm fashion favor feature fee fence festival fiction field figure filter fine
fleet
flat floor forecast form formula foundation frame freight fridge fruit function funding furniture gadget gallery
garage
garment gate glass goal grade graph greenhouse grill grocery ground guard guest guideline gym habit hall handbook
harvest
headline heater hedge helmet highway hobby hose host hospital household husband idea illness income index industry
ingredient inquiry insect inspection instruction insurance interest interior interview inventory investment jacket jet
joint journal journey judge juice junction kennel kit kitchen label laboratory labor land lane laptop lawn lawyer
layer
lease lecture legend lens lesson letter lever licence lift line link liquid litter load locker lodge logo lounge
luggage
lunch mail manager manual margin marina market massage match matter mechanic medal memory mentor menu message metal
meter
microscope mill mineral mirror mission mixture module monitor monument mortgage motor movie mural muscle needle
network
nurse object offer office opera operator option orchard outfit oven package palace panel parade parcel park parliament
partner party passenger patch path patrol pattern pavement penalty pension performance permit picnic pipe pitch plan
planet plate platform plot poem policy pool population portrait position poster pot powder practice prescription
present
press prize process program promise proposal protein protocol province puppet purchase pyramid quarter queue quiz race
rack radar radio rail range rank receipt record refugee region register relay remedy report request rescue reservation
resort response restaurant result return reward rhythm rifle river road rocket role roll roster round route routine
sauce sauna saving scale scene scheme school scope screen script sculpture season seat section sector seminar sensor
sequence series service session settlement shade shaft shelf shelter shift ship shipment shirt shop shower shuttle
sign
signal site sketch skill slide slot snack socket software soil solution speaker species speech spell sport spot spray
squad stadium staff stage stair stall station statement step stock stop storage store story stove strategy stream
street
strike studio style suit surface surgery survey suspect switch symbol symptom syrup system tablet tactic tail target
task
taste tax tea temple tenant term terminal theater theory therapy ticket tile timber timetable tip tissue title toilet
tool topic tour towel track trade tradition traffic trail trailer treasure treat treaty trend trial tribe trick trip
truck trunk tube tunnel turbine tutor uniform union unit update upgrade valve van vehicle venture verdict version
victim
video view village visa visit visitor voice volunteer voucher wage wall wardrobe watch waste weapon weight well wheel
window wine winner wire witness worker workshop wound yard zone
""")
UNITS = words("""
hours days weeks months minutes seconds liters grams kilos pounds percent degrees dollars euros points steps pages
copies
pieces bottles boxes bags cups spoons drops rows meters feet inches miles watts volts rounds times units persons
people
guests tickets coins stars shares votes lines words items rolls sheets doses blocks floors tons nights laps calories
""")
LOOKS = words(
    "bright dark clean warm cold wide open closed quiet loud soft hard long short ready safe free busy full new"
)
STEMS = sorted(
    {
        word.lower()
        for table in (NAMES, CITIES, WORDS, NOUNS, HELD_OUT_NOUNS, TEXT_PARAMETERS, HELD_OUT_TEXT, NUMBER_PARAMETERS,
                      HELD_OUT_NUMBER, ACTIONS, THINGS, UNITS, LOOKS)
        for word in table
        if word.isalpha() and len(word) > 2
    }
)  # fmt: skip
