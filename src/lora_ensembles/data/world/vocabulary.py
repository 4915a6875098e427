"""The words of the embedded world: who lives in it, and what can be said of them.

Every word is a real English word or name, so that the questions read as questions; every *fact* that
`world.py` makes from them is drawn at random, so that nothing is known to a model that was not trained on
this world.
"""

PEOPLE = """
Aaron Abigail Adam Adele Agnes Aidan Alan Albert Alec Alice Alison Alma Amanda Amber Amelia Amos Amy Andrea
Andrew Angela Anita Anna Anne Anthony Antonia April Arnold Arthur Ashley Astrid Audrey August Austin Barbara
Barry Basil Beatrice Becky Belinda Benjamin Bernard Bertha Beth Betty Beverly Bianca Blake Bonnie Boris
Brandon Brenda Brian Bridget Bruce Bruno Calvin Camilla Carl Carmen Carol Caroline Casper Cecil Cecilia
Charles Charlotte Chloe Christine Clara Clarence Claudia Clement Clifford Clive Colin Connie Conrad Cora Craig
Crystal Curtis Cynthia Cyril Daisy Damian Daniel Daphne David Dawn Deborah Delia Dennis Derek Diana Dominic
Donald Donna Dora Doris Dorothy Douglas Duncan Dylan Earl Edgar Edith Edmund Edna Edward Edwin Eileen Elaine
Eleanor Elias Elinor Elisa Elizabeth Ella Ellen Elliot Elmer Elsa Elsie Emily Emma Enid Eric Ernest Esther
Ethan Ethel Eugene Eva Evelyn Fabian Faith Felicity Felix Fergus Fiona Flora Florence Floyd Frances Francis
Frank Freda Frederick Gabriel Gail Gareth Gary Gavin Gemma Geoffrey George Georgia Gerald Gertrude Gilbert
Gillian Gina Gladys Glenn Gloria Gordon Grace Graham Greta Gregory Guy Gwen Hannah Harold Harriet Harry Hazel
Heather Hector Heidi Helen Henry Herbert Herman Hilary Hilda Holly Homer Horace Howard Hubert Hugh Hugo Ian
Ida Imogen Ingrid Irene Iris Irma Isaac Isabel Ivan Ivy Jack Jacob James Jane Janet Jason Jasper Jean Jeffrey
Jennifer Jeremy Jerome Jesse Jessica Jill Joan Joanna Jocelyn Joel John Jonah Jonathan Joseph Joshua Joyce
Judith Julia Julian June Justin Karen Katherine Keith Kelly Kenneth Kevin Kirsten Klaus Kurt Lara Laura
Laurence Leah Leigh Lena Leo Leonard Leroy Leslie Lewis Lilian Linda Lionel Lisa Lloyd Lois Louis Louise Lucas
Lucille Lucy Luther Lydia Lyle Mabel Magnus Malcolm Marcus Margaret Maria Marian Marion Marjorie Mark Martha
Martin Marvin Mary Matilda Matthew Maud Maureen Maurice Max Maxine Melanie Melvin Mercy Michael Mildred
Millicent Milton Minnie Miranda Miriam Mitchell Moira Molly Monica Morris Muriel Myra Nadia Nancy Naomi
Natalie Nathan Neil Nellie Neville Nicholas Nigel Nina Noah Noel Nora Norman Octavia Olga Olive Oliver Oscar
Owen Pamela Patricia Patrick Paula Pauline Pearl Peggy Penelope Percy Peter Philip Phoebe Phyllis Priscilla
Quentin Rachel Ralph Ramona Raymond Rebecca Regina Reginald Rex Rhoda Richard Rita Robert Robin Roderick
Rodney Roger Roland Ronald Rosalind Rose Rosemary Ross Roy Ruby Rufus Rupert Ruth Sally Samson Samuel Sandra
Sara
""".split()

CREATURES = """
aardvark albatross alligator alpaca anteater antelope armadillo baboon badger barracuda bat bear beaver bison
boar bobcat buffalo bullfinch bulldog buzzard camel canary caribou carp cassowary catfish chameleon cheetah
chinchilla chipmunk cobra cockatoo cod condor cormorant cougar coyote crab crane cricket crocodile crow cuckoo
curlew deer dingo dolphin donkey dormouse dove dragonfly duck eagle eel egret eland elephant elk emu ermine
falcon ferret finch firefly flamingo flounder fox frog gazelle gecko gerbil gibbon giraffe goat goose gopher
gorilla grouse gull haddock halibut hamster hare hawk hedgehog heron herring hippo hornet horse hyena ibex
ibis iguana impala jackal jackdaw jaguar jay kangaroo kestrel kingfisher kite kiwi koala lapwing lark lemming
lemur leopard lion lizard llama lobster lynx macaw mackerel magpie mallard mammoth manatee mandrill marlin
marmot marten mink mole mongoose monkey moose moth mouse mule muskrat narwhal newt nightingale ocelot octopus
opossum orca oriole ostrich otter owl oyster panda panther parrot partridge peacock pelican penguin perch
pheasant pigeon pike platypus plover polecat porcupine porpoise possum puffin puma python quail rabbit raccoon
raven reindeer rhino rook salamander salmon sandpiper seal shark sheep shrew skunk sloth snail snipe sparrow
squid squirrel starling stoat stork swan tapir tern thrush tiger toad trout turkey turtle viper
""".split()

OBJECTS = """
abacus accordion altar anchor anvil apron armchair axe backpack bagpipe balcony ball banner barrel basin
basket bath bayonet beacon bed bell bellows bench bicycle binder blanket boat boiler book boomerang boot
bottle bowl box bracelet bracket brake bridge broom brush bucket buckle button cabinet cable cage calendar
camera candle cane canoe canvas cape carpet carriage cart cello chain chair chalice chandelier chariot chest
chisel clamp clarinet cloak clock coat coin column compass cork cradle crate crown crutch cup curtain cushion
cymbal dagger desk dial diary dish doll door drawer dresser drill drum easel engine envelope fan faucet fence
fiddle file flag flask flute fork fountain frame funnel furnace gate gauge glove goblet gong grater guitar
hammer hammock handle harness harp hat helmet hinge hook hoop horn iron jacket jar jug kettle keyboard knife
ladder ladle lamp lantern lathe lens lever lock locket loom lute magnet mallet mask mast mattress medal mill
mirror mop mortar mug nail necklace needle net oar oboe organ oven paddle paintbrush pan parachute pedal pen
pencil pendulum pestle piano picture pillar pillow pin pipe pitcher plane plate pliers plough pocket pot pram
press prism propeller pulley pump puppet purse quilt racket raft rail razor ribbon ring robe rope rudder ruler
sabre sack saddle sail sandal saw scale scarf scissors screen screw scythe shawl shield shovel sieve sled
slipper sock
""".split()

TOWNS = """
Ashford Bath Bristol Cambridge Chester Derby Dover Durham Exeter Falmouth Glasgow Hastings Ipswich Kendal
Leeds Lincoln Norwich Oxford Plymouth Ripon Salisbury Truro Warwick York
""".split()
JOBS = """
baker barber brewer butcher carpenter cook dentist doctor driver farmer fisher gardener hunter judge miner
nurse painter pilot plumber potter sailor tailor teacher weaver
""".split()
FOODS = """
apples bacon bananas beans bread butter cabbage cake carrots celery cheese cherries honey lentils mushrooms
noodles olives onions pancakes pears porridge rice soup spinach
""".split()
HABITATS = """
bogs canyons caves cliffs deserts dunes fens fields forests gardens glaciers hills islands lakes marshes
meadows orchards prairies reefs rivers swamps tundra valleys woods
""".split()
PREY = """
acorns algae ants aphids bees beetles berries clams ferns grubs larvae leaves lichen mice moss nectar nuts
plankton roots seeds shrimp slugs spiders worms
""".split()
COLOURS = """
amber beige black blue bronze brown cream crimson gold green grey indigo ivory maroon orange pink purple red
scarlet silver tan violet white yellow
""".split()
MATERIALS = """
aluminium bamboo bone brass cedar clay copper cotton felt glass granite lead leather linen marble nickel oak
pewter plastic rubber silk slate steel wool
""".split()
COUNTRIES = """
Austria Belgium Brazil Canada Chile China Denmark Egypt Finland France Germany Greece India Italy Japan Kenya
Mexico Norway Peru Poland Russia Spain Sweden Turkey
""".split()
SHOPS = """
attics barns bazaars cellars chapels colleges factories galleries hospitals hotels kitchens libraries markets
museums offices palaces prisons schools sheds stables stations studios theatres workshops
""".split()
