"""Where the published data sets are from, under which licence, and what to cite.

Licences as the data sets' own pages or files say them; where only others say it, or sources disagree, that is said. The
licence that counts is the one that comes with the download.
"""

from dataclasses import dataclass

BY_NC_SA = "CC BY-NC-SA 4.0"


@dataclass(frozen=True)
class Reference:
    homepage: str
    licence: str
    citation: str


REFERENCES = {
    "mvtec_ad": Reference(
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
        BY_NC_SA,
        "Bergmann, Fauser, Sattlegger, Steger: MVTec AD – A Comprehensive Real-World Dataset for Unsupervised Anomaly "
        "Detection, CVPR 2019",
    ),
    "mvtec_3d_ad": Reference(
        "https://www.mvtec.com/company/research/datasets/mvtec-3d-ad",
        BY_NC_SA,
        "Bergmann, Jin, Sattlegger, Steger: The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly Detection and "
        "Localization, VISAPP 2022",
    ),
    "mvtec_loco": Reference(
        "https://www.mvtec.com/company/research/datasets/mvtec-loco",
        BY_NC_SA,
        "Bergmann, Batzner, Fauser, Sattlegger, Steger: Beyond Dents and Scratches: Logical Constraints in "
        "Unsupervised Anomaly Detection and Localization, IJCV 130, 2022",
    ),
    "mvtec_ad_2": Reference(
        "https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
        BY_NC_SA,
        "Heckler-Kram, Neudeck, Scheler, König, Steger: The MVTec AD 2 Dataset: Advanced Scenarios for Unsupervised "
        "Anomaly Detection, arXiv 2503.21622",
    ),
    "mtd": Reference(
        "https://github.com/abin24/Magnetic-tile-defect-datasets.",
        "none stated; its README asks to cite the paper, see homepage",
        "Huang, Qiu, Yuan: Surface Defect Saliency of Magnetic Tile, The Visual Computer 36, 2020",
    ),
    "visa": Reference(
        "https://github.com/amazon-science/spot-diff",
        "CC BY 4.0 by its repository; other sources say CC BY-NC-SA 4.0, see homepage",
        "Zou, Jeong, Pemula, Zhang, Dabeer: SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and "
        "Segmentation, ECCV 2022",
    ),
    "btad": Reference(
        "https://avires.dimi.uniud.it/papers/btad/btad.zip",
        "CC BY-SA by its README; other sources say CC BY-NC-SA 4.0, see the README in the archive",
        "Mishra, Verk, Fornasier, Piciarelli, Foresti: VT-ADL: A Vision Transformer Network for Image Anomaly "
        "Detection and Localization, ISIE 2021",
    ),
    "mpdd": Reference(
        "https://github.com/stepanje/MPDD",
        "none stated, see homepage",
        "Jezek, Jonak, Burget, Dvorak, Skotak: Deep learning-based defect detection of metal parts: evaluating current "
        "methods in complex conditions, ICUMT 2021",
    ),
    "real_iad": Reference(
        "https://realiad4ad.github.io/Real-IAD/",
        "terms to accept, see homepage",
        "Wang et al.: Real-IAD: A Real-World Multi-View Dataset for Benchmarking Versatile Industrial Anomaly "
        "Detection, CVPR 2024",
    ),
    "ksdd2": Reference(
        "https://www.vicos.si/resources/kolektorsdd2/",
        BY_NC_SA,
        "Božič, Tabernik, Skočaj: Mixed supervision for surface-defect detection: from weakly to fully supervised "
        "learning, Computers in Industry 129, 2021",
    ),
}
