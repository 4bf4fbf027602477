"""Tables and helpers of text normalization: layout, numbers, addresses, ASCII, splitting of texts, lexicons."""

import functools
import html
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import regex  # needs half the time of re for the patterns of rules

try:
    from num2words import num2words
except ImportError:
    num2words = None

Lexicon = Mapping[str, str] | str | os.PathLike | None
MAX_ENTRIES = 100_000  # most entries of a lexicon

DIGITS = "zero one two three four five six seven eight nine".split()
THOUSANDS = "thousand million billion trillion".split()
MAX_DIGITS = 15  # longer numbers, and numbers with a leading zero, are read digit by digit
MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def _table(entries: str) -> dict[str, str]:
    """{written: spoken} of "written=spoken; written=spoken"."""
    return dict(entry.lstrip().split("=") for entry in entries.rstrip().rstrip(";").split(";"))


def _set(words: str) -> set[str]:
    return set(words.split())


def any_of(words: Iterable[str]) -> str:
    """A pattern that matches any of these words, the longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


# Sign or code = unit, hundredth. Plurals of UNINFLECTED have no "s".
CURRENCIES = _table("""
    $=dollar,cent; €=euro,cent; £=pound,penny; ₹=rupee,paisa; ¥=yen,sen; ₽=ruble,kopeck; ₩=won,jeon; ₺=lira,kurus;
    ₪=shekel,agora; ₫=dong,xu; ₴=hryvnia,kopiyka; ฿=baht,satang; ₱=peso,centavo; ₦=naira,kobo; ₿=bitcoin,satoshi;
    US$=U S dollar,cent; C$=Canadian dollar,cent; CA$=Canadian dollar,cent; A$=Australian dollar,cent;
    AU$=Australian dollar,cent; NZ$=New Zealand dollar,cent; HK$=Hong Kong dollar,cent; S$=Singapore dollar,cent;
    R$=Brazilian real,centavo; USD=U S dollar,cent; EUR=euro,cent; GBP=pound,penny; JPY=yen,sen; CHF=Swiss franc,cent;
    CAD=Canadian dollar,cent; AUD=Australian dollar,cent; NZD=New Zealand dollar,cent; CNY=yuan,fen; RMB=yuan,fen;
    INR=rupee,paisa; SEK=Swedish krona,ore; NOK=Norwegian krone,ore; DKK=Danish krone,ore; PLN=zloty,grosz;
    RUB=ruble,kopeck; MXN=Mexican peso,centavo; BRL=Brazilian real,centavo; ZAR=rand,cent; SGD=Singapore dollar,cent;
    HKD=Hong Kong dollar,cent; BTC=bitcoin,satoshi; Rs=rupee,paisa; Rs.=rupee,paisa; kr=krone,ore; kr.=krone,ore;
    zl=zloty,grosz; CZK=Czech koruna,heller; Kc=Czech koruna,heller; HUF=forint,filler; KRW=won,jeon; THB=baht,satang;
    ILS=shekel,agora; AED=dirham,fils; TRY=lira,kurus; UAH=hryvnia,kopiyka; ETH=ether,gwei; NT$=Taiwan dollar,cent;
    MX$=Mexican peso,centavo; Mex$=Mexican peso,centavo; CAD$=Canadian dollar,cent; AUD$=Australian dollar,cent
""")
SMALL_MONEY = {"¢": ("cent", "cents"), "p": ("penny", "pence")}
SCALES = _table(
    "k=thousand; m=million; mm=million; mn=million; mio=million; b=billion; bn=billion; t=trillion; "
    "tn=trillion; trn=trillion; lakh=lakh; crore=crore"
)
# After a number, case-sensitive.
UNITS = _table("""
    kg=kilogram; g=gram; mg=milligram; microg=microgram; km=kilometer; m=meter; cm=centimeter; mm=millimeter;
    microm=micrometer; nm=nanometer; l=liter; L=liter; ml=milliliter; mL=milliliter; cl=centiliter; dl=deciliter;
    microl=microliter; microL=microliter; lb=pound; lbs=pound; oz=ounce; fl oz=fluid ounce; fl. oz.=fluid ounce;
    lb.=pound; lbs.=pound; oz.=ounce; ft=foot; ft.=foot; in.=inch; yd=yard; yds=yard; mi=mile; mi.=mile; ha=hectare;
    gal=gallon; qt=quart; pt=pint; tsp=teaspoon; tsp.=teaspoon; tbsp=tablespoon; tbsp.=tablespoon; Tbsp=tablespoon;
    sq ft=square foot; sq. ft.=square foot; sq mi=square mile; sq m=square meter; sq km=square kilometer;
    cu ft=cubic foot; mph=mile per hour; kph=kilometer per hour; km/h=kilometer per hour; kmh=kilometer per hour;
    m/s=meter per second; mpg=mile per gallon; min=minute; mins=minute; min.=minute; hr=hour; hrs=hour; hr.=hour;
    h=hour; s=second; sec=second; sec.=second; ms=millisecond; micros=microsecond; ns=nanosecond; yr=year; yrs=year;
    wk=week; Hz=hertz; kHz=kilohertz; MHz=megahertz; GHz=gigahertz; kB=kilobyte; KB=kilobyte; MB=megabyte;
    GB=gigabyte; TB=terabyte; GiB=gibibyte; kbps=kilobit per second; Mbps=megabit per second;
    Gbps=gigabit per second; MB/s=megabyte per second; GB/s=gigabyte per second; fps=frame per second;
    Mbit/s=megabit per second; kbit/s=kilobit per second; Gbit/s=gigabit per second; rpm=revolution per minute;
    bpm=beat per minute; px=pixel; MP=megapixel; W=watt; kW=kilowatt; MW=megawatt; GW=gigawatt; Wh=watt hour;
    kWh=kilowatt hour; MWh=megawatt hour; V=volt; kV=kilovolt; mV=millivolt; mA=milliamp; mAh=milliamp hour; A=amp;
    J=joule; kJ=kilojoule; cal=calorie; kcal=kilocalorie; N=newton; Pa=pascal; kPa=kilopascal; hPa=hectopascal;
    psi=pound per square inch; dB=decibel; hp=horsepower; cc=cubic centimeter; ohm=ohm; kohm=kilohm; Mohm=megohm;
    ppm=part per million; °C=degree Celsius; °F=degree Fahrenheit; °=degree; mmHg=millimeter of mercury;
    mm Hg=millimeter of mercury; yrs.=year; c.=cup; Nm=newton meter; K=kelvin; dL=deciliter; mol=mole; mmol=millimole;
    micromol=micromole; mcg=microgram; bps=basis point; pp=percentage point;
    pp.=percentage point; atm=atmosphere; mbar=millibar; MPa=megapascal; GPa=gigapascal; kN=kilonewton; mW=milliwatt;
    Ah=amp hour; microF=microfarad; nF=nanofarad; pF=picofarad; microA=microamp; microV=microvolt; eV=electron volt;
    keV=kiloelectron volt; MeV=megaelectron volt; MiB=mebibyte; KiB=kibibyte; PB=petabyte; dpi=dot per inch;
    ppb=part per billion; cts=cent; kts=knot; bbl=barrel; inHg=inch of mercury; lm=lumen;
    sq. mi.=square mile; sq. m=square meter; sq. km=square kilometer
""")
for _unit in "m km cm mm ft in mi yd".split():
    for _size, _name in ("2", "square"), ("3", "cubic"):
        UNITS[_unit + _size] = f"{_name} {UNITS.get(_unit, 'inch')}"
WORDY_UNITS = set("inch mile cup teaspoon tablespoon pound ounce pint quart gallon hour acre foot yard".split())
PLURALS = _table(
    "foot=feet; inch=inches; penny=pence; Swedish krona=Swedish kronor; "
    "Norwegian krone=Norwegian kroner; Danish krone=Danish kroner; krone=kroner; ore=ore; paisa=paise; "
    "Czech koruna=Czech koruny; "
    "millimeter of mercury=millimeters of mercury; inch of mercury=inches of mercury"
)
UNINFLECTED = set(
    "yen sen won jeon yuan fen baht rand kelvin gwei hertz kilohertz megahertz gigahertz horsepower".split()
)
# Before a name or a word. Their dot does not end a sentence.
TITLES = _table("""
    Mr=Mister; Mrs=Missus; Ms=Miz; Dr=Doctor; Prof=Professor; vs=versus; e.g.=for example; e.g=for example;
    i.e.=that is; i.e=that is; approx.=approximately; dept.=department; Dept.=Department; Mt.=Mount; Gen.=General;
    Col.=Colonel; Capt.=Captain; Lt.=Lieutenant; Sgt.=Sergeant; Rev.=Reverend; Gov.=Governor; Sen.=Senator;
    Hon.=Honorable; Pres.=President; Messrs.=Messieurs; Ft.=Fort; cf.=compare; ca.=circa; viz.=namely;
    incl.=including; esp.=especially; w/o=without; w/=with; tel.=telephone; Tel.=Telephone;
    max.=maximum; Maj.=Major; Cpl.=Corporal; Cmdr.=Commander; Adm.=Admiral; Pvt.=Private; Rep.=Representative;
    Fr.=Father; Mme=Madame; Mlle=Mademoiselle; Profs=Professors; Supt.=Superintendent; Det.=Detective;
    Insp.=Inspector; avg.=average; Avg.=Average; asst.=assistant; Asst.=Assistant; lg.=large
""")
# Before a number.
NUMBERED = _table("""
    p.=page; pp.=pages; vols.=volumes; chs.=chapters; Fl.=Floor;
    Fig.=Figure; fig.=figure; Figs.=Figures; Ch.=Chapter; ch.=chapter; Vol.=Volume; vol.=volume;
    Sec.=Section; sec.=section; Eq.=Equation; Pt.=Part; pt.=part; Nos.=numbers; nos.=numbers; Art.=Article; c.=circa;
    ext.=extension; Ext.=Extension; Apt.=Apartment; Ste.=Suite; Hwy=Highway; Hwy.=Highway; Rte.=Route;
    Mk=Mark; Mk.=Mark; Rm.=Room; Bldg.=Building; v=version; v.=version; ver.=version; §=section; §§=sections;
    lat.=latitude; long.=longitude; figs.=figures; eqs.=equations; Eqs.=Equations; Rm=Room; Bldg=Building;
    tab.=table; Tab.=Table; Op.=Opus; op.=opus; est.=established; para.=paragraph;
    paras.=paragraphs; rev.=revision; temp.=temperature; Cat.=Category
""")
# After a name or a word. Their dot may end a sentence.
ENDINGS = _table("""
    etc.=et cetera; Jr.=Junior; Sr.=Senior; St.=Street; Ave.=Avenue; Blvd.=Boulevard; Rd.=Road; Inc.=Incorporated;
    Ltd.=Limited; Corp.=Corporation; Co.=Company; Ln.=Lane; Hwy.=Highway; Pkwy.=Parkway; Bros.=Brothers;
    Terr.=Terrace; Ct.=Court; Sq.=Square; doz.=dozen; pkg.=package; qty.=quantity; Ed.D.=E D D;
    Ctr.=Center; Plz.=Plaza; Pl.=Place; Fl.=Floor; ea.=each; Univ.=University; Assn.=Association; et al.=et al;
    Ph.D.=P H D; misc.=miscellaneous; Esq.=Esquire; govt.=government; Govt.=Government; intl.=international;
    natl.=national; est.=estimated; pkgs.=packages; mgr.=manager; Calif.=California; Fla.=Florida
""")
STREETS = _table(
    "St=Street; Ave=Avenue; Blvd=Boulevard; Rd=Road; Ln=Lane; Dr=Drive; Hwy=Highway; Pkwy=Parkway; "
    "Ctr=Center; Plz=Plaza"
)
# Cities of countries with a five-digit code before the city.
CITIES = _set("""
    PARIS LYON MARSEILLE TOULOUSE NICE NANTES STRASBOURG MONTPELLIER BORDEAUX LILLE RENNES REIMS GRENOBLE DIJON ANGERS
    VERSAILLES CANNES AVIGNON BERLIN HAMBURG MUNICH MUNCHEN KOLN COLOGNE FRANKFURT STUTTGART DUSSELDORF LEIPZIG DRESDEN
    BREMEN HANNOVER NUREMBERG NURNBERG BONN HEIDELBERG POTSDAM MADRID BARCELONA VALENCIA SEVILLA SEVILLE MALAGA BILBAO
    ROMA ROME MILANO MILAN NAPOLI NAPLES TORINO TURIN FIRENZE FLORENCE VENEZIA VENICE BOLOGNA HELSINKI CEDEX
""")
ROADS = (
    "[Rr]ue|[Aa]venue|[Bb]oulevard|[Bb]d|[Qq]uai|[Pp]lace|[Vv]ia|[Pp]iazza|[Cc]alle|[Pp]laza|\\w+(?:strasse|platz|weg)"
)
COMPASS = _table("N=North; S=South; E=East; W=West")
# Capitalized words before "St." or "Dr." that mean a saint or a doctor: "Mount St. Helens", "Ask Dr. Who".
NOT_A_STREET = _set("""
    A An And As Ask At Both But By Call Did Does Dear East For Fort From Has He Her His I If In Is It Lake Like
    Mount My Near No Not Of Old On Or Our Port Said Saw See She So That The Then They This To Tell Thank Visit Was
    We When Where With Yes You Your New
""")
STATES = _table("""
    AL=Alabama; AK=Alaska; AZ=Arizona; AR=Arkansas; CA=California; CO=Colorado; CT=Connecticut; DE=Delaware; FL=Florida;
    GA=Georgia; HI=Hawaii; ID=Idaho; IL=Illinois; IN=Indiana; IA=Iowa; KS=Kansas; KY=Kentucky; LA=Louisiana; ME=Maine;
    MD=Maryland; MA=Massachusetts; MI=Michigan; MN=Minnesota; MS=Mississippi; MO=Missouri; MT=Montana; NE=Nebraska;
    NV=Nevada; NH=New Hampshire; NJ=New Jersey; NM=New Mexico; NY=New York; NC=North Carolina; ND=North Dakota;
    OH=Ohio; OK=Oklahoma; OR=Oregon; PA=Pennsylvania; RI=Rhode Island; SC=South Carolina; SD=South Dakota; TN=Tennessee;
    TX=Texas; UT=Utah; VT=Vermont; VA=Virginia; WA=Washington; WV=West Virginia; WI=Wisconsin; WY=Wyoming; DC=D C;
    ON=Ontario; QC=Quebec; BC=British Columbia; AB=Alberta; MB=Manitoba; SK=Saskatchewan; NS=Nova Scotia;
    NB=New Brunswick; NL=Newfoundland; PE=Prince Edward Island
""")
AMBIGUOUS_STATES = _set("AB BC HI IN MB ME NB OH OK ON OR PE")  # also words
INTERJECTIONS = _set("Ah All Alright Fine Hey No Now Oh Okay So Sure Thanks Well Wow Yeah Yes")
# Spelled although they have vowels. Words without a vowel are always spelled, except SOUNDS.
SPELLED = _set("""
    AAA ABC ABS AC ACLU AD AFK AI AKA AM API APA APR ATM AWS BA BCE BMI CAD CE CEO CFO CIA CIO COO CPU CTO DA DIY
    DNA DOI DOJ EC ECB ECG EDT EEA EKG EPA ER ESL ESP ESPN EST ET ETA EU EUR EV FAA FAQ FBI FDA FIA FYI GPA GPU GUI
    HIV IBM ICU ID IDE IEEE IIRC IMF IMO IO IP IPA IPO IQ IR IRC IRL IRS ISBN ISO ISP IT ITV IUD IV IVF KO LA LED MA
    MBA MIA MIT MOT MRI NAACP NBA NCAA NEA NHL NRA NSA NYC NYPD NYU OECD OEM OMG OD OS PA PE POV PTA QA RNA RSA RSI
    RSPCA SEO SMB SOS STI SUV TBA UAE UAV UCLA UEFI UFC UFO UHF UI UK UN UPC UPS UPI URI URL US USA USB USC USDA
    USPS USSR UTC UTF UTI UV UX VAT VIP VOIP WTO YMCA AP EP DOB DUI EIN ETF IOU IPV IOT HDMI
    AA CPA CTA EIA EPS ESA EOF GMO GOP HOA IEC LAX MMA NDA NGO NIH OCR OTA OTC OTP REM ROI SAT SLA TOS UA UHD
    CI CET CEST EET EEST AEST IST OT
    SEC POW ERA PSA ADHD ASMR EOY NYT BYOB AFAIK IMHO GIS MEP MOU POC POS QED SEM SME SOC SOP USP
    ISS UNHCR ATV AV EMT EMS ESG EOD ERP ICBM IOC IAEA AOL AMD ASL AARP USAF USMC USN IPCC
""")
ABBREVIATIONS = _set("US UK UN EU USA USSR UAE DC LA NY AM PM AD BC BCE CE PHD MD BA MA BSC MBA AKA ASAP RIP")
# Acronyms of three or four letters that start or end with consonants as no English word does: HBO, VGA, IDK.
_STARTS = (
    "[BCFGKPS]L|[BCDFGKPTVW]R|[CGKPSTW]H|[KGPS]N|[DSTV]W|S[CKMPQTVR]|PS|TS|VL|(?:SC|SH|SP|ST|TH|CH|PH)R|SPL|SCH|SPH"
)
UNSAYABLE = re.compile(
    rf"(?=[A-Z]{{3,4}}$)(?:(?!(?:{_STARTS})[AEIOUY])[^AEIOU][^AEIOUY]|.*[^AEIOULRNMSWY][^AEIOUYSTHZ]$(?<!CK|FF|GG|BB|DD|PP|GN))"
)
SOUNDS = set("HMM SHH PSST GRR BRR ZZZ PFFT TSK MR MRS DR ST VS NTH PHD JSON CMOS ETC".split())
SHOUTED = set("IT US AM AS IS OR AD LA MA PA".split())  # words if a word next to them is in capitals too
SPECIAL = _table(
    "PhD=P H D; PhDs=P H D's; AT&T=A T and T; NaCl=N A C L; NaOH=N A O H; HCl=H C L; KCl=K C L; "
    "JPEG=J peg; NAACP=N double A C P; IEEE=I triple E; AAA=triple A; OK=okay; OK'd=okayed; .NET=dot net; "
    "WiFi=Wi-Fi; LaTeX=Lay-tech; JPEGs=J pegs; IPv4=I P v 4; IPv6=I P v 6; pH=P H; iOS=i O S; macOS=mac O S; "
    "mRNA=m R N A; MySQL=My S Q L; NoSQL=No S Q L; PostgreSQL=Postgres Q L; SQLite=S Q Lite; OAuth=O Auth; "
    "B.Sc.=B S C; M.Sc.=M S C; BSc=B S C; MSc=M S C; "
    "WWI=World War one; WWII=World War two; 401(k)=four oh one k; 401(k)s=four oh one k's; 403(b)=four oh three b; "
    "WW1=World War one; WW2=World War two; Fwd:=Forward:; FW:=Forward:; Fw:=Forward:; c/o=care of; "
    "A-Z=A to Z; M-F=Monday to Friday; M-Th=Monday to Thursday; Cc:=C C:; Bcc:=B C C:; b/c=because; attn:=attention:; "
    "Attn:=Attention:; tRNA=T R N A; rRNA=R R N A; siRNA=S I R N A; cDNA=C D N A; gr8=great; l8r=later; m8=mate; "
    "w8=wait; h8=hate; b4=before; 2nite=tonight; 2day=today; 2moro=tomorrow; thx=thanks; pls=please; plz=please"
)
_CHAT = "afaik brb btw fwiw fyi idk iirc imho imo irl lmk nvm omg rsvp smh tbh ttyl wtf"
SPECIAL.update((word, " ".join(word)) for word in _CHAT.split())
# Before a Roman numeral.
NUMBERED_ROMAN = "World War|WW|Super Bowl|Star Wars|WrestleMania|" + "|".join(
    """
    War Chapters? Parts? Volumes? Books? Acts? Scenes? Sections? Titles? Phases? Types? Class Grade Level
    Division Articles? Amendment Appendix Table Figure Mark Episodes? Season Stage Schedule Vatican Category
    Factor Canto Psalms? Plates? Paragraph Rule Step Unit Lesson Tier Pages? pages? Group Series
""".split()
)
KINGS = _set("""
    Adrian Albert Alexander Alexios Alfonso Amenhotep Anne Antiochus Artaxerxes Baldwin Benedict Boniface Carl
    Casimir Catherine Celestine Charles Christian Clement Constantine Cyrus Darius David Edmund Edward Elizabeth
    Erik Felipe Ferdinand Francis Franz Frederick Friedrich George Gregory Gustav Haakon Harald Harold Henri Henry
    Hussein Innocent Isabella Ivan James Jean Joao John Joseph Juan Julius Justinian Karl Kenneth Leo Leopold Louis
    Ludwig Magnus Manuel Margaret Margrethe Maria Mary Matilda Maximilian Mehmed Michael Mohammed Murad Napoleon
    Nicholas Olaf Olav Oscar Otto Paul Pedro Peter Philip Philippe Pius Ptolemy Ramesses Ramses Richard Robert
    Rudolf Selim Sigismund Sixtus Stephen Sultan Suleiman Thomas Thutmose Umberto Urban Victoria Vladimir Wilhelm
    William Xerxes Emmanuel Carlos
""")
RULERS = set("King Queen Pope Emperor Empress Tsar Czar Kaiser Sultan Pharaoh Prince Princess".split())
_NAMES = "2 half 3 third 4 quarter 5 fifth 6 sixth 7 seventh 8 eighth 9 ninth 10 tenth 12 twelfth 16 sixteenth "
_NAMES += "32 thirty-second 64 sixty-fourth"
FRACTIONS = {int(number): name for number, name in zip(_NAMES.split()[::2], _NAMES.split()[1::2])}
_SIGNS = _table("""
    &= and ;%= percent;+= plus ;@= at ;×= times ;÷= divided by ;±= plus or minus ;≈= approximately ;
    ≠= is not equal to ;≤= less than or equal to ;≥= greater than or equal to ;√= the square root of ;∞= infinity ;
    ‰= per mille;∩= intersection ;∪= union ;∅= the empty set ;∀= for all ;∃= there exists ;∝= proportional to ;
    ≡= is equivalent to ;∴= therefore ;⇔= if and only if ;
    →= to ;⇒= implies ;−=-;§= section ;©= copyright ;∑= sum ;∫= integral ;∈= in ;∂= partial ;
    ∛= the cube root of ;⊂= subset of ;⊆= subset of ;∉= not in ;
""")
COMPARED = {">=": "≥", "<=": "≤", "!=": "≠", "==": "=", "->": "→", "=>": "→", "&&": "&", "||": "or", "-=": "minus ="}
SIGNS = {**_SIGNS, "=": " equals "}
_ADDRESS = _table("""
    .=dot; /=slash; @=at; -=dash; _=underscore; :=colon; ?=question mark; &=and; #=hash; %=percent; ~=tilde; +=plus;
    \\=backslash
""")
ADDRESS_SIGNS = {**_ADDRESS, "=": "equals"}
ADDRESS_LETTERS = set("io uk ai eu edu exe api ip id us ui de ie au es it at nl".split())
_LETTERS = _table(
    "ß=ss; ẞ=SS; þ=th; Þ=Th; ð=d; Ð=D; æ=ae; Æ=Ae; œ=oe; Œ=Oe; ŋ=ng; Ŋ=Ng; ı=i; ĸ=k; ə=e; Ə=E; №= No. ; "
    "™=; ®=; ⁄=/; ˚=°; 円=¥"
)
_ALIKE = (
    ("‘’ʻʼ‛′´", "'"),
    ("“”„‟″«»", '"'),
    ("–—―‐‑‒•▪●◦‣►➤", "-"),
    ("".join(map(chr, [*range(32), *range(127, 160)])), " "),
)
_BREAKS = dict.fromkeys("\n\r\x0b\x0c\x85\u2028\u2029", "\n")
CHARACTERS = str.maketrans({**{c: sign for characters, sign in _ALIKE for c in characters}, **_BREAKS, **_LETTERS})
_SOUNDS = "a b v g d e z i y k l m n o p r s t u f kh ts ch sh shch . y . e yu ya zh yo i yi ye g j lj nj c dj dz u dz"
CYRILLIC = dict(zip("абвгдезийклмнопрстуфхцчшщъыьэюяжёіїєґјљњћђџўѕ", _SOUNDS.split()))
LOOK_ALIKES = str.maketrans("аеорсухіјѕԁһԛԝАВЕЗІЈКМНОРСТУХЅѴ", "aeopcyxijsdhqwABE3IJKMHOPCTYXSV")
GREEK_LOOK_ALIKES = str.maketrans("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαικνορυ", "ABEZHIKMNOPTYXaikvopu")
GREEK = dict(zip("αβγδεζηθικλμνξοπρσςτυφχψω", "a b g d e z i th i k l m n x o p r s s t y f ch ps o".split()))
HEARTS = {"❤": "heart", "♥": "heart", "☺": "smiling face", "✅": "check mark", "✔": "check mark"}

# Inline and block tags of HTML; endings of addresses and file names; chemical elements.
TAGS = """
    a abbr b big center cite code del dfn em font i img ins kbd label mark q s samp small span strike strong sub sup tt
    u var wbr
"""
BLOCKS = """
    article aside blockquote body br dd div dl dt footer form h1 h2 h3 h4 h5 h6 head header hr html li main nav ol p pre
    section table tbody td th thead title tr ul
"""
FILES = """
    7z avi bak bat bin bmp c cfg cc cpp cs css csv dat dll doc docx dmg exe flac gif go gz h hpp html htm ico ini
    ipynb java jpeg jpg js json jsx log lua md mid mkv mov mp3 mp4 odt ogg onnx pdf php pkl png ppt pptx ps1 py pyi
    rb rs rst rtf safetensors sh sql srt svg tar tex tiff toml ts tsv tsx ttf txt wav webm webp whl xls xlsx xml
    yaml yml zip aac apk bz2 conf deb epub gguf heic ics iso jar kt lock m4a m4v mobi mpeg mpg msi npy npz parquet pem
    pth rar rpm scss sqlite swift tgz vue wasm xz
""".split()
HOSTS = "com|org|net|edu|gov|mil|info|biz|io|dev|app|ai|co|uk|de|fr|eu|ca|au|nl|ch|tv|wiki|blog|ly"
ELEMENTS = "He|Li|Be|Ne|Na|Mg|Al|Si|Cl|Ar|Ca|Ti|Cr|Mn|Fe|Co|Ni|Cu|Zn|Br|Ag|Sn|Ba|Pt|Au|Hg|Pb|[HBCNOFPSKI]"


# --- layout: Markdown, HTML, the ends of lines


def _table_row(match: re.Match) -> str:
    return "\x1e" + ", ".join(cell.strip() for cell in match[1].split("|") if cell.strip()) + "\x1e"


ROMAN = r"(?=[MDCLXVI])M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})(?<=[MDCLXVI])"
# A single letter only in a short line that is no sentence, as it may be an initial; "C." and "D." are list items.
_TITLE = r"[^\n\x1e.!?;,]{2,50}$|[A-Z][\w-]+(?: (?:&|a|and|for|in|of|on|the|to|[A-Z][\w-]*))*\.?$"
_HEADING = (
    rf"(?m)(?:^|(?<=\x1e)) ?(?P<numeral>(?=[IVXL]{{2}}){ROMAN}|[ivx]{{2,4}}|[IVX](?=\. [A-Z])(?=\. (?:{_TITLE}))"
    r"|[ivx](?=\. [a-z]{2}))(?=\. [A-Za-z][a-z])"
)


def _heading(match: re.Match) -> str:
    """Two of "II" at the start of a line."""
    return f"\x1e{spell_number(roman_value(match['numeral']))}"


class Rule(NamedTuple):
    """A pattern and its replacement, with an example of a text that it matches."""

    name: str
    example: str
    pattern: str
    spell: Callable[[re.Match], str] | str


_OPTION = r"(?<=`)--?(?=[a-zA-Z])|(?<=[a-z] )--(?=[a-z]++[-=][a-z\d])|(?<=[a-z]{2} )-(?=[a-zA-Z](?: |$))"
# Markdown and HTML as text. \x1e, which no text contains at this point, is a pause.
MARKUP = (
    Rule("fence", "```python", r"(?m)^ ?(?:```|~~~).*$", "\x1e"),
    Rule("comment", "<!-- x -->", r"<!--[^<>]*-->", ""),
    Rule("code of a page", "<style>b {}</style>", r"<(script|style)\b[^<>]*>[^<]*</\1>", ""),
    Rule("address in angles", "<https://a.org>", r"<((?:https?://|mailto:)?[^\s<>@]+[@.][^\s<>]*)>", r" \1 "),
    Rule("block", "<p>Hi</p>", rf"(?i)</?(?:{'|'.join(BLOCKS.split())})\b[^<>]*>", "\x1e"),
    Rule("tag", "<b>bold</b>", rf"(?i)</?(?:{'|'.join(TAGS.split())})\b[^<>]*>", ""),
    Rule("link", "[text](https://a.org)", r"!?\[([^\[\]\n]*)\]\([^()\n]*\)", r"\1"),
    Rule("footnote", "word[^1]", r"\[\^[\w-]{1,30}\]:?", ""),
    Rule("citation", "word.[1]", r"(?:(?<=[a-z])|(?<=\w[.,)\"']))\[(?:[1-9]\d{0,2}|citation needed)\](?!\()", ""),
    Rule(
        "key",
        "Press *67",
        r"(?:(?<=[Pp]ress )|(?<=[Dd]ial ))[*#](?!\*)",
        lambda m: "star " if m[0] == "*" else "pound ",
    ),
    Rule("option", "`--verbose`", _OPTION, lambda match: "dash " * len(match[0])),
    Rule("reference", "[text][1]", r"\[([^\[\]\n]*)\]\[[^\[\]\n]*\]", r"\1"),
    Rule("row", "| a | b |", r"(?m)^ ?\|(?![ :|-]*$)(.*)$", _table_row),
    Rule("ruler", "---", r"(?m)^ ?(?:\|[ :|-]*|[-=*_](?: ?[-=*_])++ ?)$", "\x1e"),
    Rule("quotation", "> text", r"(?m)^ ?(?:>(?!=) ?)++", ""),
    Rule("heading", "# Title", r"(?m)^ ?#{1,6} ++(.*?)#*$", "\x1e\\1\x1e"),
    Rule("item", "- [x] item", r"(?m)^ ?[-*+·→] (?:\[[ xX]\] )?", "\x1e"),
    Rule("code", "`x`", r"`++|~~|\\(?=[*_#\[\]`])", ""),
    Rule("emphasis opens", "**bold", r"(?<![\w*])\*{1,3}(?=[^\s*])|(?<![\w/.@-])_{1,3}(?=[^\W_])(?!\w*\.\w)", ""),
    Rule("emphasis ends", "bold**", r"(?<=[^\s*])\*{1,3}(?![\w*])|(?<=[^\W_])_{1,3}(?!\w)|(?<=[.!?])_{1,3}(?!\w)", ""),
    Rule("heading in Roman numerals", "I. Introduction", _HEADING, _heading),
    Rule("emoticon", ":-)", r"(?<!\S)(?:[:;=]-?[()DPp/]|:'\(|<3|[xX]D)(?!\S)", ""),
)
_MARKUP = [(regex.compile(rule.pattern), rule.spell) for rule in MARKUP]
LINE_END = re.compile(r" ?[\n\x1e][ \n\x1e]*")
LONG_LINE = 55  # a line of this length was wrapped at its width


def without_markup(text: str) -> str:
    """Removes Markdown and HTML from a text."""
    for pattern, spell in _MARKUP:
        text = pattern.sub(spell, text)
    return html.unescape(text).translate(CHARACTERS | {0x1E: 0x1E}) if "&" in text else text


def _line_end(match: re.Match) -> str:
    """Adds pauses at the ends of list items, headings, paragraphs and short lines."""
    text, start, end = match.string, match.start(), match.end()
    if not start or end == len(text):
        return " "
    last = text[start - 1] if text[start - 1] not in "\"')" else text[start - 2 : start - 1]
    if last in ".!?:;,-(":
        return " "
    previous = max(
        text.rfind("\n", max(0, start - LONG_LINE), start), text.rfind("\x1e", max(0, start - LONG_LINE), start)
    )
    short = previous >= 0 or start < LONG_LINE
    blank = match[0].count("\n") > 1
    if "\x1e" in match[0] or re.compile(r"\d+[.)] ").match(text, end):
        return ". "
    if text[end].islower():
        return ", " if short and not blank else " "
    return ". " if short or blank else " "


def pauses_at_line_ends(text: str) -> str:
    """Joins the lines of a text."""
    return LINE_END.sub(_line_end, text)


# --- numbers


def spell_digits(digits: str, zero: str = "zero") -> str:
    """Digits and decimal points, one by one."""
    return " ".join("point" if c == "." else zero if c == "0" else DIGITS[int(c)] for c in digits)


@functools.lru_cache(maxsize=16384)
def _words(number: int, kind: str) -> str:
    """A number in words, by num2words; long ones in groups of three digits, which is ten times as fast."""
    if kind == "year" or number < 1000:
        return num2words(number, to=kind).replace(",", "")
    rest = number % 100
    if kind == "ordinal":
        cardinal = _words(number, "cardinal")
        return f"{cardinal.rpartition(' ')[0]} {_words(rest, kind)}" if rest else f"{cardinal}th"
    parts = [(number // 1000**i % 1000, name) for i, name in enumerate(("", *THOUSANDS))]
    words = [f"{_words(part, kind)} {name}".strip() for part, name in reversed(parts) if part]
    return " ".join([*words[:-1], "and", words[-1]] if 0 < number % 1000 < 100 else words)


@functools.lru_cache(maxsize=16384)
def spell_number(number: int | str, kind: str = "cardinal") -> str:
    """A number of 0 or more in words.

    Args:
        number: an integer, or its digits, which may have commas and decimals.
        kind: "cardinal", "ordinal" or "year".
    """
    digits = str(number).replace(",", "")
    if num2words is None or len(digits) > MAX_DIGITS or digits[0] == "0" and digits[1:2].isdigit():
        return spell_digits(digits)
    whole, point, decimals = digits.partition(".")
    words = _words(int(whole), "cardinal" if point else kind)
    return f"{words} {spell_digits(point + decimals)}" if point else words


def plural(noun: str) -> str:
    """Miles per hour, square feet, degrees Celsius, yen."""
    head, per, rest = noun.partition(" per ")
    if noun in PLURALS:
        return PLURALS[noun]
    if head.startswith("degree"):
        return noun.replace("degree", "degrees", 1)
    *others, last = head.split()
    last = last if last in UNINFLECTED else PLURALS.get(last, f"{last}s")
    return " ".join([*others, last]) + per + rest


def roman_value(numeral: str) -> int:
    """The value of a Roman numeral."""
    values = [dict(zip("IVXLCDM", (1, 5, 10, 50, 100, 500, 1000)))[c] for c in numeral.upper()]
    return sum(-v if v < following else v for v, following in zip(values, [*values[1:], 0]))


# --- rows of digits and letters, addresses


def left_of(match: re.Match, length: int = 40) -> str:
    """The text before a match."""
    return match.string[max(0, match.start() - length) : match.start()]


def right_of(match: re.Match, length: int = 40) -> str:
    """The text after a match."""
    return match.string[match.end() : match.end() + length]


def in_pairs(number: str) -> str:
    """One oh one, three eighty, five hundred of a room, a road, an aircraft."""
    if number.endswith("00") or len(number) != 3:
        return spell_number(number)
    return f"{spell_number(number[0])} {'oh ' if number[1] == '0' else ''}{spell_number(int(number[1:]))}"


def spell_phone(match: re.Match) -> str:
    """Five five five, one two three, four five six seven; one eight hundred, ..."""
    if len(match[0]) < 9 and match[0].startswith("+"):
        return match[0]
    words = []
    for part in re.findall(r"\d+|[A-Za-z]+|\+", match[0]):
        if part == "+" or part.isalpha():
            words.append("plus" if part == "+" else "extension" if part.islower() else part)
        else:
            hundred = re.fullmatch("([01](?=[358]))?([1-9]00)", part)
            first = f"{spell_digits(hundred[1], 'oh')} " if hundred and hundred[1] else ""
            words.append(f"{first}{spell_number(hundred[2]) if hundred else spell_digits(part, 'oh')},")
    return re.sub(r"\bone, (?=\w+ hundred)", "one ", " ".join(words)).rstrip(",")


def spell_groups(match: re.Match) -> str:
    """Four one one one, two two two two; ten, two, one of a short row."""
    groups = re.findall(r"\d+", match[0])
    short = max(map(len, groups)) < 3 and min(map(len, groups)) == 1
    return ", ".join(map(spell_number if short else spell_digits, groups))


def spell_characters(match: re.Match) -> str:
    """D E eight nine, three seven oh four."""
    return ", ".join(
        " ".join(spell_digits(c) if c.isdigit() else c for c in group) for group in re.split("[ :-]", match[0])
    )


def spell_network_address(match: re.Match) -> str:
    """One nine two dot one six eight dot zero dot one, port eight zero."""
    end = f", port {spell_digits(match[2])}" if match[2] else f" slash {match[3]}" if match[3] else ""
    return " dot ".join(map(spell_digits, match[1].split("."))) + end


def spell_address(match: re.Match) -> str:
    """Example dot com slash docs, a dot person at example dot org, setup dot p y."""
    words = []
    for part in re.findall(r"[A-Za-z]+|\d+|[^A-Za-z]", re.sub(r"^\w+://|/$", "", match[0])):
        if part.isalpha():
            letters = part.lower() in ADDRESS_LETTERS or not re.search("[aeiouy]", part, re.I) or part == "py"
            words.append(" ".join(part) if letters else " ".join(_camel(part)))
        elif part.isdigit():
            after_a_letter = words and len(words[-1]) == 1 and words[-1].isalpha()  # v1 is no version
            words.append(spell_digits(part) if len(part) > 4 else spell_number(part) if after_a_letter else part)
        else:
            words.append(ADDRESS_SIGNS.get(part, part))
    return " ".join(words)


def _camel(word: str) -> list[str]:
    """The words of ThrowbackThursday and of throwback_thursday."""
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z_]+", word)


def spell_tag(match: re.Match) -> str:
    """Hashtag Throwback Thursday, at john underscore doe."""
    if match[0][0] == "#":
        return "hashtag " + " ".join(_camel(match[1]))
    return "at " + re.sub(r"[._]", lambda sign: f" {ADDRESS_SIGNS[sign[0]]} ", match[1]).strip()


def _flight(match: re.Match) -> str:
    """B A two four nine oh."""
    return f"{match[1]} {match[2]} {spell_digits(match[3], 'oh')}"


def _code(match: re.Match) -> str:
    """A seven, X nine; Q one to Q three; names such as F-16 and ranges such as 10AM-2PM stay unchanged."""
    groups = match[1].split("-")
    mixed = any(re.match("[A-Z]+\\d", group) for group in groups)
    if not re.search("[A-Z]", match[1]) or not (mixed or len(groups) > 2 or match[0][0] == "#"):
        return match[0]
    if len(groups) == 2 and groups[0][0] == groups[1][0] and groups[0][0].isalpha():
        return " to ".join(groups)
    return ", ".join(
        spell_number(group)
        if re.fullmatch(r"[1-9]0?00", group)
        else " ".join(DIGITS[int(c)] if c.isdigit() else c for c in group)
        for group in groups
    )


def _color(match: re.Match) -> str:
    """Hash F F five seven three three."""
    return "hash " + " ".join(DIGITS[int(c)] if c.isdigit() else c.upper() for c in match[1])


def _letters_and_number(match: re.Match) -> str:
    """A B C, one two three four; JIRA, one two three four."""
    word = match.group("word")
    spelled = len(word) < 4 or word in SPELLED or not re.search("[AEIOU]", word)
    return f"{' '.join(word) if spelled else word}, {spell_digits(match['number'])}"


def _digits_of_a_code(match: re.Match) -> str:
    """Code nine oh two one oh; error five hundred."""
    number = match["number"]
    return match["word"] + (spell_number(number) if re.fullmatch("[1-9]00", number) else spell_digits(number, "oh"))


def _postcode(match: re.Match) -> str:
    """Seven five oh oh one Paris; another number before a name stays unchanged."""
    street = re.search(rf"\b(?:{ROADS})\b[^.;!?]*, $", left_of(match))
    if not (match["country"] or street or match["city"].upper() in CITIES):
        return match[0]
    return (match["country"] or "").replace("-", " ") + spell_digits(match["code"], "oh") + " "


_ACRONYM_AND_A_NUMBER = (
    r"(?<=\b[A-Z]{3} )(?<!(?:FAX|TEL|"
    rf"{'|'.join(code for code in CURRENCIES if re.fullmatch('[A-Z]{3}', code))}) )"
    r"[1-9]\d(?:0[1-9]|[1-9]\d)\b(?![.,:/%-]?\d|%| [a-z])"
)
_HOST = (
    rf"(?<![\w@./-])(?:(?:[A-Za-z0-9-]++\.)+(?:{HOSTS})(?![\w-]|\.\w)|localhost(?=[:/]))"
    r"(?::\d++)?(?:/[\w.~%?=&#/-]*[\w/]|/)?"
)
LOUD_FILES = "|".join(name.upper() for name in FILES if len(name) > 2)
_FILE = (
    rf"(?<![\w/.~-])(?:~/|\.{{1,2}}/|\.|/)?(?:[\w-]++[/.])+(?<=\.)(?:{any_of(FILES)}|{LOUD_FILES})(?::\d++)?+"
    r"(?![\w/-]|\.\w)"
)
_ENDING_OF_FILES = rf"(?<![\w./])\*?\.(?:{any_of(name for name in FILES if len(name) > 1)})(?![\w/-]|\.\w)"
_PATH = r"(?<![\w/.~-])(?:(?:~|\.{1,2})/\.?[\w+-]++|/[\w+-]++/[\w+-]++)(?:[/.][\w+-]++)*+/?"
_PHONE = (
    r"(?<![\w.,+-])(?:\+?1[-. ]?)?(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\w-]|[.,]\d)(?:,? ?(?:ext\.?"
    r"|x) ?\d{1,5}\b)?"
)
_PHONE_WITH_A_ZERO = r"(?<![\w.,+-])(?:\(0\)\d{1,4}|\(?0\d{2,4}\)?)[ /-]\d{3,7}(?:[ -]\d{3,4})?(?![\w-]|[.,]\d)"
_PHONE_IN_GROUPS = (
    r"(?<![\w.,+-])(?=\(?0(?:[ )]{0,2}\d){8,10}(?![ \w]\d))\(?0\d{1,4}\)?(?: \d{2,4}){2,4}(?![\w-]|[.,]\d)"
)
_PHONE_BY_ITS_PREFIX = (
    r"(?<![\w.,+-])(?:00 ?[1-9]\d{0,2}(?: \d{1,4}){2,6}|1[38]00[ -]\d{3}[ -]\d{3}|[6-9]\d{4}[ -]\d{5}"
    r"|1-8\d\d(?= (?:number|line))|0\d(?:\.\d\d){4})(?![\w-]|[ .,]\d)"
)
_PHONE_IN_A_ROW = (
    r"\d\d{4}(?:(?<= \d{5})(?:(?<=[CcFf]a[lx][l:] \d{5})|(?<=[DdTt][ie][axl][lt:] \d{5})|(?<=phone \d{5})"
    r"|(?<=hone: \d{5})|(?<=[Nn]umber \d{5}))\d{2,10}(?!\d)|(?<= \d{5})(?<=[Tt]ext \d{5})\d?\b"
    r"|(?<![\w.,$+-]\d{5})(?<=[2-9]\d{4})\d{5}(?![\w-]|[.,]\d))"
)
_POSTCODE = r"(?<![\w.,$#-])(?P<country>[DEFI]-)?(?P<code>\d{5}) (?=(?P<city>[A-Z]\w+))"
_POSTCODE_OR_PLATE = (
    r"\b(?:[A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2}|[A-Z]\d[A-Z] \d[A-Z]\d|[A-Z]{2}\d\d [A-Z]{3}|\d[A-Z]{3}\d{3})\b"
)
_LONG_CODE = (
    r"[A-Z\d](?<!\w[A-Z\d])(?:(?<=[A-Z])[A-Z]\d\d(?: [A-Z\d]{4}){2,7}(?: [A-Z\d]{1,3})?(?!\w)"  # a bank's
    r"|(?=[A-Z\d]{9})(?:(?<=[A-Z])[A-Z]*+\d++[A-Z]++\d++|(?<=\d)\d*+[A-Z]++\d++[A-Z]++)[A-Z\d]*+(?!\w)"
    r"|(?<=[\dA-F])[\dA-F]:(?:[\dA-F]{2}:){2,6}[\dA-F]{2}(?![\w:]))"
)
_DIGITS_OF_A_CODE = (
    r"\b(?P<word>(?:[Cc]ode|PIN|[Pp]asscode|OTP|ZIP|zip|[Ee]rror|HTTP|P\.? ?O\.? [Bb]ox|ISBN|EAN|IMEI|"
    r"[Aa]ccount|[Tt]racking|(?:[Aa]ccount|[Oo]rder|[Ss]erial|[Tt]racking|[Rr]eference|[Ii]nvoice|[Cc]onfirmation"
    r"|[Rr]outing) number)(?: is|:)? )(?P<number>\d{3,18})\b(?![.,-]\d)"
)
_EMERGENCY = (
    r"(?<= )(?:(?<=[Cc]all )|(?<=[Dd]ial )|(?<=[ai]ling )|(?<=called )|(?<=11 or )|(?<=99 or )|(?<=12 or ))"
    r"(?:\d11|999|112)\b"
)
_SPACES_OF_THOUSANDS = r"(?<![\w.,+)-])(?<!\d )[1-9]\d{0,2}(?:(?: 000)+|(?: \d{3}){2,4})(?![\w-]|[ .,]\d)"
_ADDRESS_OF_A_NETWORK = r"(?<![\w.])(\d{1,3}(?:\.\d{1,3}){3})(?::(\d{2,5})|/(\d\d?))?(?![\w]|\.\d)"
# Applied in this order.
ADDRESS_RULES = (
    # addresses, names of files, tags
    Rule(
        "e-mail", "a.person@example.org", r"(?<![\w.+-])[\w.+-]++@[A-Za-z0-9-]++(?:\.[A-Za-z0-9-]++)++", spell_address
    ),
    Rule("URL", "www.example.com/docs", r"\b(?:(?:https?|ftp|file)://|www\.)[^\s<>\"'()\[\]{}|]*[\w/]", spell_address),
    Rule("host", "example.com/docs", _HOST, spell_address),
    Rule("file", "src/main.py", _FILE, spell_address),
    Rule("ending of files", "*.txt", _ENDING_OF_FILES, lambda match: f" {spell_address(match)}".replace("*", "star")),
    Rule("path", "/usr/local/bin", _PATH, spell_address),
    Rule("hidden file", ".gitignore", r"(?<!\S)\.(?=[a-z]{3})", "dot "),
    Rule("Windows path", r"C:\Users\me", r"\b[A-Za-z]:\\[\w\\.-]*\w", spell_address),
    Rule("forum", "r/science", r"(?<![\w/])([ru])/(?=\w)", r"\1 slash "),
    Rule("sharp", "C#", r"\b([A-G])#(?!\w)", r"\1 sharp"),
    Rule("color", "#FF5733", r"(?<![\w&])#(?=\d*[A-Fa-f])(?=[A-Fa-f]*\d)([\dA-Fa-f]{6})\b", _color),
    Rule("MAC address", "aa:bb:cc:dd:ee:ff", r"(?<![\w:])[\da-f]{2}(?::[\da-f]{2}){5}(?![\w:])", spell_characters),
    Rule(
        "UUID",
        "550e8400-e29b-41d4-a716-446655440000",
        r"\b[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}\b",
        spell_characters,
    ),
    Rule("DOI", "10.1000/182", r"(?<![\w.])10\.\d{4,9}/[\w.-]*\w", spell_address),
    Rule(
        "preprint", "arXiv:2406.04467", r"(?<=arXiv:)\d{4}\.\d{4,5}\b", lambda match: f" {spell_digits(match[0], 'oh')}"
    ),
    Rule("code", "A7-X9", r"(?<![\w-])#?(?=[A-Z-]*+\d)((?:[A-Z]++\d*+|\d++[A-Z]++)(?:-[A-Z\d]++)+)(?![\w-])", _code),
    Rule(
        "letters and a number",
        "ABC-1234",
        r"(?=[A-Z])(?<![\w-])(?!FY|CY|UTC|GMT)(?P<word>(?:[A-Z]{2,5}(?=-)|[A-Z]{3}))-?(?P<number>\d{3,})(?![\w-]|\.\d)",
        _letters_and_number,
    ),
    Rule("letter and a row", "H.264", r"\b([A-Z])\.(\d{3,4})\b", lambda match: f"{match[1]} {spell_digits(match[2])}"),
    Rule("postcode or plate", "SW1A 2AA", _POSTCODE_OR_PLATE, spell_characters),
    Rule("postcode before a city", "75001 Paris", _POSTCODE, _postcode),
    Rule("aircraft's letter", "A380", r"\b([A-Z])(\d{3})\b", lambda match: f"{match[1]} {in_pairs(match[2])}"),
    Rule("acronym and a number", "ISO 8601", _ACRONYM_AND_A_NUMBER, lambda match: spell_number(match[0], "year")),
    Rule("hashtag", "#ThrowbackThursday", r"(?<![\w&#])#(?=[A-Za-z_]|\d++[A-Za-z]{3})(\w++)", spell_tag),
    Rule("handle", "@john_doe", r"(?<![\w.])@(?=\w)(\w++(?:\.\w++)*+)", spell_tag),
    # rows of digits
    Rule("long code", "DE89 3704 0044", _LONG_CODE, spell_characters),
    Rule("spaces of thousands", "1 000 000", _SPACES_OF_THOUSANDS, lambda match: match[0].replace(" ", "")),
    Rule("phone", "(555) 123-4567", _PHONE, spell_phone),
    Rule(
        "vanity phone",
        "1-800-FLOWERS",
        r"(?<![\w-])(?:1-)?(?:8\d\d-|\(8\d\d\) ?)[A-Z]{2,9}(?:-[A-Z]{2,9})?(?!\w)",
        spell_phone,
    ),
    Rule("phone abroad", "+44 20 7946 0958", r"(?<![\w+])\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,6}(?!\w)", spell_phone),
    Rule("phone with a zero", "020 7946 0958", _PHONE_WITH_A_ZERO, spell_phone),
    Rule("phone in groups", "01 42 68 53 00", _PHONE_IN_GROUPS, spell_phone),
    Rule("phone by its prefix", "1300 975 707", _PHONE_BY_ITS_PREFIX, spell_phone),
    Rule("phone number", "555-1234", r"(?<![\d-])\d{3}-\d{4}(?![\d-])", spell_phone),
    Rule(
        "phone to call",
        "Call 555 0199",
        r"(?:(?<=[Cc]all )|(?<=[Dd]ial )|(?<=[Rr]ing ))\d{3} \d{3,4}\b(?! ?\d)",
        spell_phone,
    ),
    Rule("short code", "STOP to 88022", r"(?<=[A-Z] to )\d{5,6}\b(?![.,]\d)", lambda match: spell_digits(match[0])),
    Rule("phone in a row", "Call 5551234567", _PHONE_IN_A_ROW, spell_phone),
    Rule("aircraft", "747-400", r"(?<![\w-])7([0-8]7)-(?=\d)|(?<=Boeing )7([0-8]7)\b", r"7 \1\2 "),
    Rule("flight", "BA2490", r"(?=[A-Z])\b(?!FY|CY)([A-Z])([A-Z])(?:(?<=light ..) )?(\d{3,4})\b", _flight),
    Rule("digits of a code", "code 90210", _DIGITS_OF_A_CODE, _digits_of_a_code),
    Rule("error", "404 error", r"\b[45]\d\d(?= error\b)", lambda match: in_pairs(match[0])),
    Rule("emergency", "Call 911", _EMERGENCY, lambda match: spell_digits(match[0])),
    Rule("address of a network", "192.168.0.1", _ADDRESS_OF_A_NETWORK, spell_network_address),
    Rule("apostrophes of thousands", "10'000", r"(?<=\d)['_](?=\d{3}(?!\d))", ""),
    Rule(
        "dots of thousands",
        "1.000.000",
        r"(?<![\w.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.,]\d)",
        lambda m: m[0].replace(".", ""),
    ),
)


# --- characters

EMOJI = re.compile("[\u231a-\u23ff\u25a0-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff][\ufe0f\u200d\U0001f3fb-\U0001f3ff]*")


@functools.lru_cache(maxsize=4096)
def _plain(character: str) -> str:
    """Signs, digits, Latin and Greek letters in ASCII; nothing for an invisible character."""
    if character in SIGNS or character in CURRENCIES or character in "°¢":
        return character
    plain = ""
    for part in unicodedata.normalize("NFKD", character):
        category, name = unicodedata.category(part), unicodedata.name(part, "")
        if part.isascii() or category[0] not in "LMNC":
            plain += part
        elif category == "Nd":
            plain += str(unicodedata.decimal(part))
        elif latin := re.match(r"LATIN (SMALL|CAPITAL) LETTER (?:\w{3,} )*([A-Z]{1,2})(?: WITH .*)?$", name):
            plain += latin[2].lower() if latin[1] == "SMALL" else latin[2].capitalize()
        elif category[0] in "LN":
            plain += part
    return plain.translate(CHARACTERS)


def _cyrillic(text: str) -> str:
    """Cyrillic letters as Latin ones: by their shape in Latin words, otherwise by their sound."""
    letters = set(re.findall("[\u0400-\u052f]", text))
    if not letters:
        return text
    real = any(ord(c) not in LOOK_ALIKES for c in letters)

    def spell(match: re.Match) -> str:
        if letters.isdisjoint(match[0]):
            return match[0]
        word = match[0].translate(LOOK_ALIKES) if not real or re.search("[A-Za-z]", match[0]) else match[0]
        latin_letters = (CYRILLIC.get(c.lower(), c).replace(".", "") for c in word)
        return "".join(latin.capitalize() if c.isupper() else latin for c, latin in zip(word, latin_letters))

    return re.sub(r"\w+", spell, text)


def _greek_look_alikes(match: re.Match) -> str:
    """A Latin word, with look-alike Greek letters replaced."""
    latin = match[0].translate(GREEK_LOOK_ALIKES)
    mixed = re.search("[A-Za-z]{2}", match[0]) and latin.isascii() and latin.isalpha()
    return latin if mixed else match[0]


def _greek(match: re.Match) -> str:
    """The name of a single letter, or the sound of a word."""
    if len(match[0]) == 1:
        name = unicodedata.name(match[0], "").split()[-1].lower().replace("lamda", "lambda")
        before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
        return " " * before.isalnum() + name + " " * after.isalnum()
    return "".join(GREEK.get(c, c) if c.islower() else GREEK.get(c.lower(), c).capitalize() for c in match[0])


def name_emoji(text: str) -> str:
    """Replaces emoji by their names."""
    return EMOJI.sub(_emoji, text)


def _emoji(match: re.Match) -> str:
    return f" {HEARTS.get(match[0][0], unicodedata.name(match[0][0], '').lower())} "


def in_ascii(text: str) -> str:
    """Reduces a text to ASCII and the signs that the rules know."""
    text = text.replace("♭", " flat").replace("♯", " sharp")
    text = re.sub("[★⭐]{2,}", lambda stars: f" {len(stars[0])} stars ", text)
    text = re.sub(r"(?<=\d) ?[★⭐]( ?[a-z])?", lambda star: f" star {star[1]}" if star[1] else " stars ", text)
    text = re.sub(r"\bN[º°](?= ?\d)", "No. ", re.sub(r"(?<=\d) ?º", "°", EMOJI.sub(" ", text)))
    text = re.sub("[\ud800-\udfff]", " ", text)
    text = re.sub(r"(?<=\w)(?=[¼-¾⅐-⅞])|(?<=[①-⑳])(?=[①-⑳])", " ", text)
    text = re.sub(r"(?<=[A-Za-z])[·⋅](?=[A-Za-z])", "", re.sub(r"(?<=\d) ?[·⋅] ?(?=\d)", " × ", text))
    text = re.sub(r"[µμ](?=(?:[mgslLFAVW]|mol)\b)", "micro", re.sub(r"(\d ?[kM]?)[Ωω\u2126](?!\w)", r"\1ohm", text))
    text = re.sub(r"\w{3,}", _greek_look_alikes, _cyrillic(text)) if re.search("[Α-Ωα-ω]", text) else _cyrillic(text)
    text = text.translate({ord(c): _plain(c) for c in set(text) if not c.isascii()})
    return re.sub("[Α-Ωα-ω]+", _greek, text)


# --- where texts are cut

MAX_CHARACTERS = 100  # of a piece, about 6 seconds, because models are trained on utterances
PARAGRAPH = re.compile(r"\n\s*\n")
_NO_END = "".join(rf"(?<!\b{title}\.)" for title in ("Mr", "Mrs", "Ms", "Dr", "St", "Prof", "[A-Z]"))
BREAKS = (
    re.compile(rf"""{_NO_END}(?:(?<=[.!?])|(?<=[.!?]["')]))\s+(?=["'(]?[A-Z])"""),
    re.compile(r"""(?:(?<=[.!?;:])|(?<=[.!?;:]["')]))\s+"""),
    re.compile(r"(?<=,)\s+"),
    re.compile(r"\s+"),
)


def split_text(text: str, fits: Callable[[str], bool], breaks: tuple[re.Pattern, ...] = BREAKS) -> list[str]:
    """Splits a text into few pieces that fit, at the best breaks. Raises ValueError if no character fits."""
    if fits(text):
        return [text]
    if len(text) < 2:
        raise ValueError(
            "No room for text: the prompt's transcript fills max_text_tokens. Use a voice with a shorter transcript."
        )
    if not breaks:
        return split_text(text[: len(text) // 2], fits, ()) + split_text(text[len(text) // 2 :], fits, ())
    pieces: list[str] = []
    for part in breaks[0].split(text):
        joined = f"{pieces[-1]} {part}" if pieces else part
        if pieces and fits(joined):
            pieces[-1] = joined
        else:
            pieces += [part] if fits(part) else split_text(part, fits, breaks[1:])
    return pieces


CHARACTERS_PER_SECOND = 15  # of read English


def expected_frames(text: str, frame_rate: float) -> int:
    """The approximate number of frames of a text."""
    return int(len(text) / CHARACTERS_PER_SECOND * frame_rate) + 1


# --- lexicons


def read_lexicon(path: str | os.PathLike) -> dict[str, str]:
    """Entries of a lexicon file with one `WORD = RESPELLING` per line; `#` starts a comment.

    Raises:
        ValueError: the file cannot be read, or a line is something else.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The lexicon {path} cannot be read: expected a text file in UTF-8.") from error
    entries: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not (line := line.partition("#")[0].strip()):
            continue
        word, equals, respelling = (part.strip() for part in line.partition("="))
        if not (word and equals and respelling):
            raise ValueError(f"{path}, line {number}: {line!r}: expected WORD = RESPELLING, such as Siobhan = shivawn.")
        entries[word] = respelling
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"The lexicon {path} has {len(entries)} entries: expected at most {MAX_ENTRIES}.")
    return entries


def respell(text: str, lexicon: Lexicon) -> str:
    """Respells the words of a lexicon, {word: respelling} or the path of its file, in a text. Ignores case.

    Longer entries take precedence. Raises ValueError for an invalid lexicon.
    """
    entries = read_lexicon(lexicon) if isinstance(lexicon, str | os.PathLike) else {} if lexicon is None else lexicon
    if not isinstance(entries, Mapping) or not all(isinstance(x, str) and x for pair in entries.items() for x in pair):
        raise ValueError(f"lexicon={lexicon!r}: expected {{word: respelling}}, or the path of such a file.")
    if not entries:
        return text
    spoken = {word.lower(): respelling for word, respelling in entries.items()}
    words = "|".join(re.escape(word) for word in sorted(spoken, key=len, reverse=True))
    return re.sub(rf"(?<!\w)(?:{words})(?!\w)", lambda found: spoken[found[0].lower()], text, flags=re.IGNORECASE)
