"""Texts of the tutorial: twelve words with two meanings each, and eight sentences per meaning."""

from __future__ import annotations

from typing import NamedTuple


class Sense(NamedTuple):
    """One meaning of a word.

    Attributes:
        word: The word, which every sentence contains.
        meaning: The word a user would type to ask for this meaning.
        sentences: Eight sentences.
    """

    word: str
    meaning: str
    sentences: tuple[str, ...]

    @property
    def name(self) -> str:
        """Word and meaning, such as "bank (money)"."""
        return f"{self.word} ({self.meaning})"


def _sense(word: str, meaning: str, text: str) -> Sense:
    return Sense(word, meaning, tuple(line.strip() for line in text.strip().splitlines()))


SENSES = (
    _sense("bank", "money", """
        The bank raised its lending rate by half a point on Tuesday.
        She opened a savings account at the bank on Main Street.
        Our bank refused the loan because the firm had no collateral.
        Shares of the bank fell after it wrote off bad mortgages.
        You can cash this cheque at any branch of the bank.
        The central bank bought dollars to support the currency.
        A bank has to hold capital against the credit that it gives.
        He owes the bank three years of interest on his house."""),
    _sense("bank", "river", """
        We pitched our tents on the grassy bank and watched the water go by.
        The flood has washed away the eastern bank of the stream.
        Herons were standing on the muddy bank, waiting for fish.
        Willows along the bank hold the soil together when the river rises.
        They pulled the canoe up on the bank below the rapids.
        A path follows the left bank from the mill to the bridge.
        The current is slower near the bank, where reeds grow.
        Otters had dug their den into the steep bank of the creek."""),
    _sense("python", "programming", """
        In Python a list comprehension is often faster than a loop.
        The Python interpreter raises an exception when the key is missing.
        We rewrote the script in Python and deleted half of the code.
        Install the Python package with pip inside a virtual environment.
        A Python function may return several values as a tuple.
        The server calls a Python module to parse the request.
        Type hints let a checker find mistakes in Python before it runs.
        He learned Python first and C much later."""),
    _sense("python", "snakes", """
        The python swallowed a goat and did not eat again for weeks.
        A python kills its prey by squeezing, not by venom.
        Rangers found a python coiled around her eggs in the marsh.
        The zoo keeps a reticulated python that is six metres long.
        A python sheds its skin in one piece when it grows.
        The python slid through the grass towards the sleeping deer.
        Heat pits on its lip let a python sense warm animals at night.
        The python has no fangs but many teeth that point backwards."""),
    _sense("pitch", "baseball", """
        The batter missed the first pitch and fouled off the second.
        His fastest pitch crossed the plate at ninety-eight miles an hour.
        She struck out the side without throwing one bad pitch.
        The catcher signalled for a low pitch on the outside corner.
        A wild pitch let the runner on third come home.
        He hit the very first pitch of the game into the stands.
        The umpire called the pitch a ball, and the manager ran out.
        After his hundredth pitch the starter was taken out in the seventh inning."""),
    _sense("pitch", "music", """
        The choir was slightly under pitch by the end of the hymn.
        A tuning fork gives the pitch to which the violins tune.
        Shortening a string raises its pitch by an octave.
        She has perfect pitch and can name any note she hears.
        The pitch of an organ pipe depends on its length.
        Singers slide from one pitch to the next in this style.
        The melody repeats the same rhythm at a higher pitch.
        Old flutes were built to a lower pitch than modern ones."""),
    _sense("court", "law", """
        The court sentenced him to four years in prison for fraud.
        An appeals court has overturned the verdict against the company.
        Her lawyer told the court that the evidence was obtained illegally.
        The supreme court ruled that the statute was unconstitutional.
        Witnesses must appear before the court on Monday morning.
        A court ordered the landlord to return the deposit.
        The judge asked for silence as the jury returned to the court.
        They settled the dispute before it came to court."""),
    _sense("court", "tennis", """
        She served three aces from the far side of the court.
        The ball landed just outside the court, and the umpire called it out.
        Clay makes the court slower and the rallies longer.
        He ran across the court to reach a drop shot at the net.
        They booked the court for an hour of doubles after work.
        Her backhand down the side of the court won the set.
        A wet court is dangerous, so play was stopped until it dried.
        The players changed ends of the court after the third game."""),
    _sense("crane", "birds", """
        A crane stood on one leg in the shallow marsh.
        The crane migrates south in large flocks every autumn.
        Two chicks hatched in the nest of the whooping crane.
        The crane spread its grey wings and danced before its mate.
        We heard the trumpeting call of a crane long before we saw it.
        A crane feeds on seeds, insects and small frogs.
        The long neck of a flying crane is stretched straight out.
        Wetlands were drained, and the crane stopped breeding here."""),
    _sense("crane", "construction", """
        The crane lifted steel beams to the twentieth floor.
        A tower crane collapsed onto the building site in the storm.
        The operator swung the crane round and lowered the concrete.
        They hired a mobile crane to set the bridge in place.
        The port's new crane unloads a container every two minutes.
        Check the load chart before the crane picks up the girder.
        Workers bolted the mast of the crane to its foundation.
        The hook of the crane can carry twelve tonnes."""),
    _sense("cell", "biology", """
        The membrane of the cell lets water in and keeps proteins out.
        Each cell copies its DNA before it divides.
        A virus enters the cell and uses it to make copies of itself.
        Mitochondria supply the cell with chemical energy.
        The nucleus of the cell holds its chromosomes.
        Under the microscope the stained cell showed no nucleus.
        A white blood cell engulfs the bacteria that it meets.
        Insulin makes the muscle cell take up more glucose."""),
    _sense("cell", "telephone", """
        Call me on my cell when your train arrives.
        His cell rang in the middle of the concert.
        I left my cell at home, so nobody could reach me.
        Give me your cell number and I will text you the address.
        The battery of her cell was dead by noon.
        She turned off her cell before the plane took off.
        My cell gets no signal in the basement.
        He bought a new cell with a prepaid card and free calls."""),
    _sense("plant", "gardening", """
        Water the plant twice a week and keep it out of direct sun.
        The plant flowers in June and sets seed in August.
        Cut the plant back to two buds after it has bloomed.
        This plant likes acid soil and some shade.
        Aphids had covered every leaf of the plant.
        Repot the plant when its roots come through the bottom.
        A young plant should be kept from frost until May.
        The plant climbs by tendrils and needs a trellis."""),
    _sense("plant", "factory", """
        The plant builds four hundred cars a day on two assembly lines.
        The company will close its steel plant and lay off 900 workers.
        A fire stopped production at the chemical plant for a week.
        The union at the plant voted to strike over wages.
        The new plant will double the output of tyres.
        Managers moved the night shift to the plant in Ohio.
        The plant was fined for letting solvents into the sewer.
        Robots now do most of the welding at the plant."""),
    _sense("bass", "fishing", """
        He caught a five-pound bass near the sunken log.
        The bass in this lake feed on minnows at dawn.
        Use a rubber worm if the bass will not take a spinner.
        We grilled the bass over charcoal with lemon.
        The largest bass lie deep in the weeds at noon.
        She let the small bass go and cast her line again.
        A bass guards its eggs in a nest on the gravel.
        Anglers come to the reservoir for bass and trout."""),
    _sense("bass", "guitar", """
        The bass and the drums start the song alone.
        She plays bass in a jazz trio and piano at home.
        His amplifier makes the bass rattle the windows.
        The bass line moves down by steps under the chorus.
        A fretless bass sounds closer to a cello.
        Turn down the bass, the singer cannot be heard.
        He restrung his bass before going on stage.
        The band has needed a bass player since the tour ended."""),
    _sense("mercury", "planets", """
        Mercury goes round the sun in eighty-eight days.
        A probe has mapped the craters of Mercury from its orbit.
        Mercury has almost no atmosphere and no moon.
        Seen from Earth, Mercury is never far from the sun.
        The orbit of Mercury turns a little more than Newton predicts.
        Mercury is the smallest planet and only a third larger than our moon.
        A day on Mercury lasts longer than its year.
        Astronomers timed the transit of Mercury across the solar disc."""),
    _sense("mercury", "metal", """
        The mercury in an old thermometer is poisonous when it breaks.
        Mercury is the only metal that is liquid at room temperature.
        Miners use mercury to bind gold dust, and poison the stream.
        Large tuna contain more mercury than sardines do.
        Fluorescent lamps hold a few milligrams of mercury vapour.
        Hatters once went mad from the mercury in their felt.
        The barometer's column of mercury fell before the storm.
        Dental fillings were made of silver and mercury."""),
    _sense("seal", "animals", """
        A seal was lying on the ice beside its breathing hole.
        The seal pup drinks its mother's fat milk for two weeks.
        A polar bear can smell a seal from a mile away.
        The seal dived after a school of herring.
        Sailors saw a grey seal asleep on the rocks.
        The seal barked and slid from the beach into the waves.
        Its blubber keeps the seal warm in the Arctic sea.
        The aquarium has trained a seal to balance a ball on its nose."""),
    _sense("seal", "engine", """
        Oil was leaking past the worn seal of the crankshaft.
        Replace the rubber seal whenever the pump is opened.
        The cylinder head needs a new seal to keep the coolant out.
        A damaged seal let air into the hydraulic line.
        Grease the seal before you press it into its housing.
        The valve drips because its seal has hardened.
        High pressure blew the seal out of the compressor.
        The gearbox has a seal at each end of the shaft."""),
    _sense("spring", "season", """
        In spring the snow melts and the first crocuses open.
        The swallows come back every spring to the same barn.
        Farmers sow oats in spring, as soon as the ground is dry.
        It was a cold spring, and the cherry trees bloomed late.
        The days get longer and warmer in spring.
        Lambs are born in spring when the grass begins to grow.
        Hay fever is worst in spring, when birches flower.
        After a long winter everybody waits for spring."""),
    _sense("spring", "mechanics", """
        A coiled spring pushes the valve shut again.
        The force of a spring grows with how far it is stretched.
        The rear spring of the truck broke under the load.
        Wind the spring, and the clock runs for a week.
        The latch is held closed by a small steel spring.
        A stiffer spring makes the suspension harder.
        The mass hangs from a spring and swings up and down.
        The trigger is pulled back by a spring when you let go."""),
    _sense("match", "football", """
        They lost the match by a goal in the last minute.
        The referee ended the match before the crowd could invade.
        Her hat trick in the second half decided the match.
        The match was drawn, so both clubs go through to the next round.
        Fans queued all night for tickets to the cup match.
        He was sent off and will miss the next match.
        The striker has not scored in any match this season.
        The match between the two teams was stopped by fog."""),
    _sense("match", "fire", """
        He struck a match and lit the candle.
        A single match was enough to burn down the barn.
        The match went out in the wind before the wood caught.
        Hold the match to the paper under the kindling.
        She shielded the burning match with her hand.
        Never light a match when you smell gas.
        The match flared, and for a moment we saw the cave.
        The head of a match holds sulphur that catches when rubbed."""),
)  # fmt: skip

FULL_SENTENCE = "The central bank raised interest rates again, and people with a mortgage will pay for it."
"""The sentence that the tutorial takes apart."""


def question(word: str) -> str:
    """A question about the word that fits both meanings."""
    return f"What is there to know about the {word}?"
