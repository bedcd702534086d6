"""What the names of folders and columns say, in the languages in which they are written: normal, abnormal, masks. Pure.

The lists are our choice: words that were met in folders of inspection pictures and in public data sets.
"""

import re
import unicodedata
from typing import Literal

Word = Literal["normal", "abnormal", "mask", "train", "val", "test", ""]

# English; German; French; Italian; Spanish and Portuguese; Polish and Czech; Dutch and the Nordic languages.
_TEXTS: dict[Word, str] = {
    "normal": """
        good normal normals ok okay okey passed nominal healthy clean perfect flawless accepted anomalyfree defectfree
        faultfree undamaged
        gut gute gutes guten gutteil gutteile io normale fehlerfrei fehlerfreie inordnung defektfrei mangelfrei intakt
        bon bons bonne bonnes normaux conforme conformes sain sains
        buono buoni buona buone
        bueno buenos buena buenas normales bom
        dobry dobre dobra dobrze
        goed hyva
    """,
    "abnormal": """
        bad ng nok ko nogood notok notgood anomaly anomalies anomalous abnormal abnormals defect defects defective
        defected defectives def fault faults faulty fail failed failure reject rejects rejected damaged damage flawed
        flaw broken scrap
        schlecht schlechte schlechtteil schlechtteile nio defekt defekte fehler fehlerhaft fehlerhafte ausschuss mangel
        mangelhaft schaden kaputt nichtok nichtio nichtinordnung auffallig anormal unnormal
        mauvais mauvaise mauvaises defaut defauts defectueux rebut rebuts nonconforme nonconformes
        cattivo cattivi difetto difetti difettoso difettosi scarto scarti
        malo malos defecto defectos defectuoso defectuosos ruim defeito defeitos defeituoso
        zly zle wada wady wadliwy vada vady vadny
        slecht fout fouten dalig feil virhe
    """,
    "mask": """
        mask masks gt gts groundtruth groundtruths truth label labels labelmap labelmaps annotation annotations
        segmentation segmentations segmask segmasks
        maske masken annotationen masque masques maschera maschere mascara mascaras maska maski masker
    """,
    "train": "train training trainset trainingset",
    "val": "val valid validation validierung dev",
    "test": "test testing tests testset evaluation eval testdaten",
}
WORDS = {word: frozenset(text.split()) for word, text in _TEXTS.items()}
BEGINNINGS: dict[Word, tuple[str, ...]] = {"abnormal": ("anomal", "defekt", "defect", "abnorm", "fehlerh", "ausschuss")}
_DENIALS = "no not non nicht kein keine ohne without sans senza sin sem free frei un"
DENIALS = frozenset(_DENIALS.split())


def folded(name: str) -> str:
    """In lower case and without accents: `Défaut` is `defaut`."""
    parts = unicodedata.normalize("NFKD", name.casefold())
    return "".join(sign for sign in parts if not unicodedata.combining(sign))


def word_of(name: str) -> Word:
    """What a folder's name says: of `n.i.O.`, `01_NG`, `bad parts`, `no defects`; empty where it is no such word.

    The name as a whole counts first, less digits and what is no letter, then its parts; a part that denies (`not`,
    `ohne`, `free`) turns normal and abnormal.
    """
    text = folded(name)
    whole = re.sub(r"[^a-z]", "", text)
    if exact := next((word for word, words in WORDS.items() if whole in words), None):
        return exact
    parts = re.findall(r"[a-z]+", text)
    found = {meaning for part in parts if (meaning := _meaning(part))}
    if "mask" in found:
        return "mask"
    turned: dict[Word, Word] = {"normal": "abnormal", "abnormal": "normal"}
    if DENIALS.intersection(parts):
        found = {turned.get(meaning, meaning) for meaning in found}
    order: tuple[Word, ...] = ("abnormal", "normal", "train", "val", "test")
    return next((word for word in order if word in found), "")


def _meaning(text: str) -> Word:
    for word, words in WORDS.items():
        if text in words:
            return word
    return next((word for word, starts in BEGINNINGS.items() if text.startswith(starts)), "")


ROLES = {  # of a table's columns: what they are called
    "path": """path image image_path img img_path file file_name filename filepath file_path image_file picture
        bild datei bilddatei pfad chemin fichier ruta archivo""",
    "split": "split set subset partition usage phase menge aufteilung",
    "label": """label class target defect anomaly anomaly_class is_anomaly is_anomalous is_bad is_defective status
        result klasse defekt fehler befund ergebnis y""",
    "mask": "mask mask_path maskpath mask_file gt ground_truth ground_truth_path segmentation maske",
    "category": "category object object_name product item clsname kategorie produkt teil bauteil",
    "group": """group scene part_id object_id specimen sample_id serial serial_number gruppe teilenummer
        seriennummer""",
}


def columns_for(there: list[str], image: str = "path") -> dict[str, str]:
    """By role the first of the columns that has one of its names, in any case.

    Args:
        image: what the first role is called, in tables that hold the images themselves.
    """
    by_name = {re.sub(r"[^a-z]+", "_", folded(name)).strip("_"): name for name in reversed(there)}
    found: dict[str, str] = {}
    for role, names in ROLES.items():
        column = next((by_name[name] for name in names.split() if name in by_name), None)
        if column is not None and column not in found.values():
            found[image if role == "path" else role] = column
    return found
