"""Common English words, in place of the lists of the package `wonderwords`."""

ADJECTIVES = """
able abrupt absent active agile alert amber ample ancient ardent arid avid awake bare basic bitter
blank bleak blind blunt bold brave brief bright brisk broad bronze brown busy calm careful cheap
chief civil clean clear clever close cloudy cold common cool copper coral cosy crisp crooked cruel
curious curly damp daring dark dear deep dense dim dire direct distant dizzy double dry dull dusty
eager early earnest easy elder empty equal exact extra faint fair faithful false famous fancy fast
fatal fertile fierce final fine firm flat fluent fond formal fragile frank free fresh frosty full
fuzzy gentle giant giddy glad global golden grand grave gray great green grim gruff hardy harsh
hasty heavy hidden hollow honest huge humble icy idle inner ivory jolly keen kind large late
lavish lazy lean level light limp little lively local lone long loose loud loyal lucky mad main
major meek mellow merry mighty mild minor misty modern modest moist muddy mute narrow neat new
nimble noble noisy normal novel odd oily old open orange outer oval pale patient perfect plain
polite poor prime private prompt proper proud public pure purple quaint quick quiet rapid rare raw
ready real recent red regal remote rich rigid ripe rough round royal rude rural rusty sad safe
salty scarce secret severe shaggy shallow sharp shiny short shy silent silly silver simple single
sleepy slim slow sly small smart smooth sober soft solid sour spare square stable stark steady
steep stern stiff still stout strange strict strong sturdy subtle sudden sunny super sweet swift
tall tame tart tender tense thick thin thorny tidy timid tiny tired tough tranquil true upper
urgent useful usual vague vain valid vast vivid warm wary weak weary wet white whole wide wild
wise witty wooden worthy yellow young zealous
"""
"""Adjectives, sorted, with space between."""

NOUNS = """
account acorn actor affair agent airport alley almond alphabet anchor angle animal ankle answer
antler apple apron arch arena arm armor arrow artist ash aspen atlas attic aunt author autumn
avenue axle badge bag baker balcony ball bamboo banana band banner barge bark barn barrel basin
basket bath beach bead beak beam bean bear beard beaver bed bee beetle bell belt bench berry
bicycle birch bird biscuit blade blanket blossom board boat bolt bone book boot border bottle
boulder bow bowl box boy bracket branch brass bread brick bride bridge brook broom brother brush
bubble bucket bud buffalo builder bulb bull bundle burrow bus bush butcher butter button cabbage
cabin cable cactus cage cake calendar calf camel camera camp canal candle cane canoe canvas canyon
cape captain caravan card cargo carpet carrot cart castle cat cave cedar ceiling cellar chain
chair chalk chapel chapter cherry chess chest chicken child chimney chin church cider circle city
clay cliff clock cloth cloud clover coach coal coast coat cobbler coffee coin collar colony column
comb comet compass concert cook cord cork corn corner cottage cotton couch cousin cow crab cradle
crane crate creek cricket crop crow crowd crown crumb crystal cube cup curtain cushion dairy daisy
dance daughter dawn day deer desert desk dew diamond diary dinner dish ditch doctor dog doll
dolphin donkey door dough dove dragon drawer dream dress driver drum duck duke dune eagle ear
earth east echo edge eel egg elbow elephant elm engine entrance envelope evening eye fabric face
factory falcon family farm farmer father feast feather fence fern ferry fiddle field fig finger
fire fish flag flame flask fleet flint flock floor flour flower flute foam fog forest fork fort
fossil fountain fox frame friend frog fruit fur garden garlic gate geese gem ghost giraffe girl
glacier glass glove goat goose gorge grain granite grape grass gravel grove guard guest guitar
gull hall hammer hamster hand handle harbor hare harp harvest hat hawk hay hazel head heart hearth
hedge helmet hen herb herd heron hill hinge hive honey hood hook horn horse hospital hotel hour
house hunter hut ice inch ink inn insect iron island ivy jacket jaguar jar jaw jelly jewel journal
journey judge jug juice jungle kettle key king kitchen kite kitten knee knife knight knot ladder
lady lake lamb lamp lane lantern lark lawn lawyer leaf leather lemon lens letter library lid lily
lime linen lion lizard lobster lock log lunch lute magnet maple marble march market marsh mask
mast meadow meal medal melon merchant metal mile milk mill miner mint mirror mist mitten moat mole
monkey month moon moose morning moss moth mother mountain mouse mouth museum mushroom music nail
napkin neck needle neighbor nephew nest net night north nose notebook nurse nut oak oar oat ocean
office olive onion orchard organ otter oven owl owner oyster paddle page paint palace palm panther
paper parade parcel park parrot pasture path pea peach peak peanut pear pearl pebble pencil
penguin pepper piano picnic picture pie pigeon pilgrim pillar pillow pilot pine pipe pirate plate
platform plaza plow plum pocket poem poet pond pony poplar porch port portrait potato potter
powder prairie priest prince prison puddle pump pupil puppy purse puzzle quail quarry queen quilt
quiver rabbit radio raft rail rain raven razor reed reef ribbon rice ridge ring river road robin
rock rocket roof room root rope rose ruby rug sack saddle sail sailor salad salmon salt sand
sandal sauce scarf school scissors screen sea seal season seat seed shark shed sheep shelf shell
shepherd shield ship shirt shoe shop shore shoulder shovel shrimp singer sister sky sled sleeve
slope smoke snail snake snow soap sock soldier son song soup south spade sparrow spear spider
spoon spring spruce square squirrel stable stage stair stamp star station statue steam steel stem
stone stool storm story stove straw stream street string student sugar suit summer sun supper
swallow swamp swan sweater sword table tailor tea teacher temple tent thistle thorn thread throat
throne thumb thunder ticket tiger timber toad toast tomato tongue tooth torch tower town toy track
trail train tray tree trumpet trunk tulip tunnel turkey turtle uncle valley vase veil vessel
village vine violet violin vulture wagon waist wall walnut walrus wasp water wave weaver well west
whale wharf wheat wheel whistle widow willow wind window wine wing winter wolf woman wood wool
workshop world worm wren wrist writer yard yarn year zebra
"""
"""Nouns, sorted, with space between."""

VERBS = """
accept admit advise agree allow announce appear arrive ask attend avoid become begin believe
belong bend bind bite blame blow boil borrow bounce bow breathe bring build burn buy call carry
catch cease change chase choose claim climb collect come compare complain confess consider contain
continue copy cost cover crawl create cross cry cut dare decide defend deliver deny depend
describe destroy dig discover divide doubt draw drift drink drop earn eat embrace encourage enjoy
enter escape examine exist expect explain explore fade fail fall fear feed feel fetch fight fill
find finish float fly fold follow forget forgive gather give glow go grab greet grow guess guide
happen hear help hesitate hide hold hope hum hurry ignore imagine improve invite join jump keep
kneel knit know last laugh lead leap learn leave lend lie lift linger listen live look lose love
make manage measure meet melt mend mention miss mix move multiply need notice obey offer order owe
pack pardon pass pause perform persuade pick plant play plead point polish pour praise pray prefer
prepare press pretend prevent produce promise protect prove pull push put quarrel question reach
read receive recognize refuse regret rejoice release remain remember remind repair repeat replace
reply rescue rest return reveal reward ride rise roar roll row rub run rush save say scatter
search see seem sell send serve sew shake share shine shout show shrink sigh sing sink sit sleep
slide smell smile solve speak spend spill spin spread stand stare start stay steal stir stop
stretch strike study suggest support surprise swim swing take talk taste teach tear tell tend
thank think throw tie touch travel tremble trust try turn twist understand unite use vanish visit
wait wake walk wander want warn wash watch wave wear weep whisper win wipe wish wonder work worry
wrap write yawn yield
"""
"""Verbs, sorted, with space between."""
