"""Word lists for concepts.py and noun_phrases.py: words outside noun phrases, and nouns that are not things."""

from __future__ import annotations

import re


def _words(text: str, *several: str) -> frozenset[str]:
    return frozenset(text.split()) | frozenset(several)


# --- words between noun phrases ---------------------------------------------------------------------------------------

SINGULAR = _words("a an one another")
POSSESSIVE = _words("the his her my your our")
NUMBERS = _words("two three four five six seven eight nine ten eleven twelve several many few various multiple")
DETERMINERS = SINGULAR | POSSESSIVE | NUMBERS | {"some"}
PRONOUNS = _words("it him them me us himself herself itself themselves", "each other", "one another")
COMMA = ","
AND = _words("and plus", "as well as")
WITH = _words("with", "along with", "together with")
OF = _words("of", "full of", "made of", "made out of", "made from")
IN = _words("in inside into within at", "inside of", "in the middle of", "at the edge of", "at the top of")
ON = _words("on onto upon", "on top of")
OVER = _words("over during across through along toward towards around down up off atop by", "out of")
ABOVE = _words("under underneath beneath below above outside")
BESIDE = _words(
    "behind beside besides near between opposite against among amid alongside",
    "next to", "close to", "in front of", "left of", "right of", "to the left of", "to the right of", "on the left of",
    "on the right of", "on the left side of", "on the right side of", "in between", "across from", "out of",
    "outside of", "at the foot of",
)  # fmt: skip
PREPOSITIONS = IN | ON | OVER | ABOVE | BESIDE
#: Prepositions of place if they follow a verb and precede a thing: "hanging from a tree", "tied to a post".
AFTER_VERBS = _words("to from")
LINKS = {COMMA: {COMMA}, "and": AND, "with": WITH, "in": IN, "on": ON, "over": OVER, "above": ABOVE, "beside": BESIDE}
BETWEEN = PREPOSITIONS | AND | WITH | {COMMA}
ADVERBS = _words(
    "together away alone outdoors indoors fast barefoot upright high mid-air midair asleep awake ajar visible onstage "
    "curbside nearby overhead upstairs downstairs ahead sideways backwards underwater out",
    "upside down", "side by side",
)  # fmt: skip
ADVERB = re.compile(r"(?!\w*(fly|family|jelly|lily|holly|belly|bully|ally|doily)$)\w+ly$|very$")
# Words of clauses, negations, comparisons and alternatives, past tenses, and other words that a list of things does not
# have.
UNSURE = AFTER_VERBS | _words(
    "that which who whom whose where when while if but or nor not no without than then because so for about before "
    "after until since per via like unlike instead except despite although though however both either neither each "
    "every all any this these those can could will would should may might must do does did done be been being was "
    "were am has have had having i you he she we they what why how here there too also just only even still yet again "
    "else its their other others ones vs versus half more most less least as something everything nothing someone "
    "everyone anyone nobody none such apart word words text caption titled named called labeled labelled mixed "
    "crossed blended merged fused combined transformed turned turning transforming becoming resembling disguised "
    "shaped arranged designed illustrated directed photographed rendered sculpted showing featuring creating casting "
    "making giving adding doing getting taking evoking showcasing capturing revealing depicting ran ate sat stood "
    "slept wore rode flew swam sang went came took gave threw caught drank drove wrote got sank fell broke rang shook "
    "shone stole spoke swung tore woke blew chose fled fought froze grew knelt led met lay"
)
CONTRACTION = re.compile(r"(it|there|that|he|she|what|who|here|let)['\u2019]s$|.*['\u2019](t|m|re|ve|ll|d)$")
FOREIGN = _words(
    "und mit ein eine einen einem einer der das dem auf neben vor hinter unter über ist im zwei le la les un une des "
    "du et avec sur dans deux el los las una unos unas y con sobre junto en il lo gli di della nel sul e um uma o os "
    "da na een het op twee og och med på två z w oraz dwa ve bir iki dan seekor và một egy és și cu kaj est sunt "
    "isang ja de em"
)

# --- verbs ------------------------------------------------------------------------------------------------------------

VERBS = _words(
    "sit stand sleep rest run walk jump leap climb crawl swim fly float hover perch hang lean kneel crouch look stare "
    "gaze smile laugh play dance sing fight chase hold carry wear ride drive eat drink read write watch hug kiss lick "
    "bite throw catch kick push pull drag lift feed pet face touch cook cut pour balance juggle hide emerge peek grow "
    "cross fall rise bark howl graze roll slide sail swing point reach pose sniff relax wield sell skate surf ski lie "
    "shout talk wave dig dive soar glide drift bounce spin twirl stretch nap pray meditate march stroll wander hike "
    "row paddle steer land chew nibble peck sip shine sneak squat wait work study lead fish hunt camp rush race hop "
    "rock drip flow bloom blow"
)
#: Verbs whose object can have no article: "wearing sunglasses".
BARE_OBJECT = re.compile(
    r"(wearing|holding|carrying|chasing|wielding|selling) |"
    r"(eating|drinking) (?!contest|competition|fountain|glass|utensil)|"
    r"playing (guitar|piano|violin|cello|drums|trumpet|saxophone|flute|harp|banjo|accordion)$"
)
#: Verbs after which "at" is not a preposition of place: "looking at".
LOOKING = _words("looking staring gazing smiling pointing barking looks stares gazes smiles points barks")
FACING = _words("facing faces")
PARTICIPLES = _words(
    "held worn hung written stuck eaten taken shaken beaten bent blown caught kept left lost made sewn spread strung "
    "sunk tied wound driven ridden torn bound woven laid hidden lit drawn thrown grown seen shown"
)
ING_NOUNS = _words(
    "building painting drawing ceiling string spring swing sling icing pudding dumpling duckling seedling sapling "
    "earring railing clothing bedding lightning morning evening wedding thing sibling herring carving awning stocking "
    "frosting viking darling stuffing topping"
)
#: Words in -ing that are part of the name of a thing.
ING_NAMES = re.compile(
    r"(dining (table|room|chair|hall)|swimming pool|(sewing|washing|vending) machine|rocking (chair|horse)|"
    r"sailing (boat|ship)|(ironing|cutting) board|shopping (bag|cart|mall)|hunting (dog|rifle|horn)|"
    r"fishing (rod|boat|net|pole)|boxing (glove|ring)|racing (car|bike)|watering can|magnifying glass|knitting needle|"
    r"sleeping bag|walking stick|running shoe|hiking boot|mixing bowl|frying pan|measuring (cup|tape)|parking meter|"
    r"steering wheel|playing card|flying saucer|washing line|recycling bin|living room|sitting room)s?$"
)
ED_NOUNS = _words("bed seed weed shed sled reed steed bobsled moped seabed flowerbed red")

# --- adjectives and nouns ---------------------------------------------------------------------------------------------

ADJECTIVES = _words(
    "red blue green yellow purple pink brown black white gray grey beige turquoise teal cyan magenta maroon navy "
    "violet crimson scarlet indigo blonde blond colorful colourful small little tiny big large huge giant gigantic "
    "enormous massive tall short long round flat thin thick wide narrow old young new ancient antique modern vintage "
    "rusty shiny bright dark pale dirty clean broken fluffy furry cute beautiful pretty handsome ugly happy sad angry "
    "friendly lazy sleepy fat slim chubby wooden golden woolen woollen wild hot cold fresh ripe rotten soft hard "
    "smooth rough empty full open closed majestic elegant fancy cozy cosy striped spotted wet dry plain simple ornate "
    "delicate medieval futuristic magical real sharp heavy fierce deep lone single few dozen strong brave noble royal "
    "plump lean slender sturdy sleek grumpy calm steep hollow bare cool crisp damp dim dull fine grand loose loud "
    "mild neat odd proud pure quaint quick quiet rare raw rich shallow shy slow smart solid stiff strange sweet swift "
    "tame tight tough tropical vast warm weak weird worn wise bizarre rustic mysterious ready fantasy cyberpunk "
    "steampunk stray"
)
#: Adjectives that can also be nouns; and the colours among them.
MATERIALS = _words(
    "orange gold silver rose bronze brass copper wood metal iron steel glass crystal stone brick marble leather "
    "velvet silk cotton lace paper plastic rubber porcelain ceramic clay square ice straw wool denim concrete granite "
    "burgundy ivory cream tan khaki olive lavender coral mustard chrome amber ruby emerald jade bamboo"
)
COLOUR_NOUNS = _words("orange gold silver rose bronze copper")
SHADES = _words("light sky navy lime forest blood snow hot jet midnight")
#: Unknown words that can precede an adjective; and words that are very likely adjectives.
ADJECTIVE = re.compile(r".*(ed|ing|y|al|ic|ous|ful|ish|ive|ern|ant|ent|less|able|ible|en|ian|ary|-.*)$")
SURE_ADJECTIVE = re.compile(r".*(ed|ing|ous|ful|ish|ive|less|ible|-.*)$")
NO_NOUN = re.compile(r"\d+$|.*(?<!hand)ful$|.*(ous|less|ness|unmade|['\u2019]s)$")
#: Verbs that can also be nouns.
VERB_NOUNS = _words("fish watch swing slide rock camp wave drink row face pet bloom cross race land")
PLURALS = _words(
    "people children men women mice geese teeth feet fish sheep deer dice oxen police cattle salmon firemen"
)
NO_PLURAL = re.compile(r".*(ss|us|is|['\u2019]s|lens|canvas|christmas)$|(\d+s|sports|texas|gas|atlas|news|chess)$")
#: Plurals that can have "a": "a glasses".
PAIRED = re.compile(r".*(glasses|goggles|pants|jeans|shorts|scissors|pliers|binoculars|headphones|trousers|tights)$")
#: Not things after "in", "on", "over" and similar prepositions; buildings only after "in" and "at".
GROUNDS = _words(
    "park beach forest forests rainforest woods jungle field fields meadow garden yard backyard street streets road "
    "highway path trail sidewalk pavement city town village desert dunes savanna savannah mountain mountains hill "
    "hills hillside valley island lake river stream ocean sea lagoon bay pond pool puddle swamp marsh cliff shore "
    "coast seaside riverbank harbor harbour marina room kitchen bedroom bathroom classroom office hall stage floor "
    "ground grass lawn sand mud water alley square market farm countryside zoo balcony terrace porch patio rooftop "
    "roof corner arena stadium court courtyard playground gym lobby corridor hallway basement attic garage plaza "
    "prairie tundra canyon cave side edge pier dock runway track shade orchard vineyard pasture graveyard cemetery "
    "battlefield ruins clearing intersection crosswalk driveway platform subway dungeon campus ballroom nursery rink "
    "aisle slope slopes ice parade land"
)
BUILDINGS = _words(
    "house castle church school cafe restaurant bar pub shop store museum library barn station airport hospital hotel "
    "temple palace theater theatre bakery cathedral supermarket greenhouse workshop laboratory lab factory cabin "
    "diner tavern mall bookstore warehouse mansion chapel prison"
)
#: Not things after any preposition.
ATMOSPHERE = _words(
    "sky skies sunset sunrise dusk dawn night nighttime daytime day sunlight moonlight daylight starlight rain snow "
    "fog mist storm clouds stars space winter summer autumn fall spring wind foreground distance left right center "
    "centre middle top bottom style air sunshine midnight noon horizon snowstorm universe surface waves"
)
PLACES_OF_THINGS = _words("top bottom middle left right center centre side edge corner")
#: Things even after "in" and "at": containers, clothes, furniture, vehicles.
CONTAINERS = _words(
    "box basket bowl cup mug teacup glass vase cage birdcage bag backpack suitcase purse handbag briefcase pot pan "
    "jar bottle bucket barrel crate tray pitcher car truck van taxi bus train plane boat canoe kayak raft gondola "
    "ship spaceship carriage cart wagon sleigh tractor bed chair armchair sofa couch hammock tree nest bathtub tub "
    "sink cradle crib wheelchair throne drawer closet wardrobe fridge oven fireplace pocket tank aquarium fishbowl "
    "mirror window hat cap dress suit shirt t-shirt coat jacket armor armour costume uniform robe gown hoodie sweater "
    "vest jeans pants shorts pajamas apron boots shoes scarf kimono tuxedo helmet spacesuit swimsuit bikini skirt "
    "cloak cape raincoat overalls mask glasses sunglasses tutu table desk counter piano stall blanket bubble pile"
)
#: After "with" they belong to the thing before it.
PARTS = _words(
    "hair eyes eye beard mustache moustache ears ear tail wings horns horn fur face smile skin spots stripes legs leg "
    "arms arm hand hands head nose mouth teeth feathers antlers mane claws scales petals roof door doors windows "
    "walls wheels sleeves handle handles pattern patterns freckles whiskers paws paw expression bangs braids ponytail "
    "feet eyebrows blades leaves rims windshield bumper branches buttons straps markings roots stem hooves shelves "
    "drawers body torso shape frown grin scowl shoulder shoulders lap back neck beak trunk tusks lips cheeks fangs "
    "tentacles trim edges chimney"
)
ABSTRACT = _words(
    "breeze time times pass beat sound music noise smell taste flavor flavors texture project architecture artistry "
    "symphony magic history future past memory memories nature culture love fear anger power sense feeling atmosphere "
    "mood beauty moment mix blend variety contrast hint touch glow warmth joy spell view look light lights shadow "
    "shadows array scene image fight battle race duel war conversation meeting cross hybrid mixture fusion "
    "combination version peace harmony energy trip walk vacation holiday party explosion picnic barbecue duet song "
    "melody game marathon routine trick ride problem sweat event show performance concert dance break lesson class "
    "lecture speech reflection information end beginning life silence darkness"
)
#: Endings of abstract nouns, and things with the same endings.
ABSTRACTION = re.compile(
    r"(?!.*(station|lation|ration|tation|lection|television|mansion|city|vanity|fence|bulance|lance|entrance|[pl]otion)$)"
    r".*(tion|sion|ity|ance|ence)$"
)
VIEWER = _words("camera viewer")
#: Vague by themselves, but not in "a traffic light".
VAGUE = _words("light lights look view version life touch")
#: Pairs of words that name one thing.
PAIRS = re.compile(
    r"\b(salt and pepper|fish and chips|mac and cheese|macaroni and cheese|bread and butter|peanut butter and jelly|"
    r"bow and arrow|bed and breakfast|rock and roll|gin and tonic|cup and saucer|mortar and pestle|"
    r"spaghetti and meatballs|cookies and cream|bacon and eggs)$"
)

# --- styles and media -------------------------------------------------------------------------------------------------

MEDIA = _words(
    "photo photograph picture image painting drawing sketch illustration render rendering portrait watercolor "
    "watercolour art artwork close-up closeup shot view scene depiction cartoon emoji caricature doodle selfie print "
    "poster snapshot"
)
#: Words after which a medium is not the beginning of a style: "a man is taking a picture of".
NO_MEDIUM = BETWEEN | OF | UNSURE | {"is", "are"}
VERB_FORM = re.compile(r"(?!painting|drawing|rendering|stunning|amazing|striking|charming)\w+ing$")
DRINKS = _words("whiskey whisky espresso tequila vodka rum")
#: Media that can be things.
OBJECTS = _words("painting drawing portrait picture photo photograph poster print sketch")
ON_A_WALL = _words("wall hanging hung frame framed easel gallery museum")
STYLE_HEADS = _words(
    "lighting photography style colors colours palette focus quality resolution detail details background composition "
    "lens angle mood atmosphere aesthetic tones contrast shading texture textures grain anime wallpaper illumination"
)
STYLE = MEDIA | STYLE_HEADS | _words(
    "4k 8k 16k hd uhd hdr highly ultra very extremely super detailed intricate realistic photorealistic "
    "hyperrealistic photorealism cinematic dramatic trending on artstation unreal engine octane 3d bokeh depth of "
    "field ray tracing film soft natural warm golden morning evening studio light hour sharp smooth vivid vibrant "
    "award-winning award winning minimalist volumetric global concept digital surreal epic stunning moody dreamy "
    "elegant professional oil pencil ink acrylic pixel vector line comic cartoon manga fantasy ghibli pixar disney"
)
TAGS = re.compile(
    r"\b\d+\+?(girl|boy|other|cat|dog)s?\b|masterpiece|(best|high|amazing|worst) quality|\bscore_\d|\bsolo\b|absurdres|"
    r"highres|looking at viewer|no humans|very aesthetic|\b[a-z]+_[a-z_]+\b|rating:|(cowboy|upper body|full body) shot|"
    r"multiple (girls|boys)"
)
