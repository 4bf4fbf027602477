"""Text as it is spoken: what a reader says for digits, signs and abbreviations, in characters that are known."""

import random
import re
import string
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from num2words import num2words

from smalle import text_normalization_smalle, text_tables_smalle
from smalle.text_normalization_smalle import RULES, normalize, spell_number
from smalle.text_tables_smalle import MARKUP, name_emoji

KNOWN = set("!\"'(),-.:;?abcdefghijklmnopqrstuvwxyz")
SPOKEN = {
    # numbers
    "It costs 1,234 now": "It costs one thousand two hundred and thirty-four now.",
    "1,234.5 m": "one thousand two hundred and thirty-four point five meters.",
    "In 12, or 3.50": "In twelve, or three point five zero.",
    "1,2": "one,two.",
    "The 3rd of 21, A4, 5x": "The third of twenty-one, A four, five x.",
    "9" * 20: " ".join(["nine"] * 20) + ".",
    "Agent 007, -5 or \u22125": "Agent zero zero seven, minus five or minus five.",
    "5\u201310, version 3.5.2": "five to ten, version three point five point two.",
    "1/2 cup, 5\u00bd, 24/7": "one half cup, five and a half, twenty-four seven.",
    "Call 555-1234": "Call five five five, one two three four.",
    "No. 1, #2": "number one, number two.",
    # years, dates, times
    "In 1999, 2005 and 1,999": "In nineteen ninety-nine, two thousand and five and one thousand nine hundred and "
    "ninety-nine.",
    "The 1990s, the \u201990s, 80s": "The nineteen nineties, the nineties, eighties.",
    "1914-1918": "nineteen fourteen to nineteen eighteen.",
    "On Nov. 20, 2026": "On November twentieth, twenty twenty-six.",
    "2026-11-20, 11/20/2026, 20/11/2026": ", ".join(["November twentieth, twenty twenty-six"] * 3) + ".",
    "the 20th of May, May 5 and 3 Sept. 2020": "the twentieth of May, May fifth and September third, twenty twenty.",
    "May 5,000 people": "May five thousand people.",
    "13/13/2026": "thirteen thirteen twenty twenty-six.",
    "At 3:05 p.m. We left at 10:00": "At three oh five p m. We left at ten o'clock.",
    "15:30, 9am and 12 PM": "fifteen thirty, nine a m and twelve p m.",
    # money and units
    "$5.20, $1, \u00a32.50": "five dollars and twenty cents, one dollar, two pounds and fifty pence.",
    "\u20ac0.01, 5 \u20ac, \u00a51,000": "one cent, five euros, one thousand yen.",
    "$1.5bn, \u20ac3 million, $5k": "one point five billion dollars, three million euros, five thousand dollars.",
    "5kg, 1 km/h, 3 MHz": "five kilograms, one kilometer per hour, three megahertz.",
    "20 \u00b0C, \u2103, 90\u00b0": "twenty degrees Celsius, C, ninety degrees.",
    # abbreviations
    "Dr. Smith vs. Mr Brown": "Doctor Smith versus Mister Brown.",
    "Etc. Apples, etc. Pears, etc., too": "Etc. Apples, et cetera. Pears, et cetera, too.",
    "St. Paul, Main St.": "Saint Paul, Main Street.",
    "In the U.S. today, e.g. here": "In the U S today, for example here.",
    "It is in the U.S. We are not": "It is in the U S. We are not.",
    # characters
    "Tom & Jerry, 5% + 1 = 2": "Tom and Jerry, five percent plus one equals two.",
    "Na\u00efve caf\u00e9s": "Naive cafes.",
    "\u201cWhy?\u201d it\u2019s": '"Why?" it\'s.',
    "a\u2014b\u2026": "a-b...",
    "and/or, snow \u2603 \u4f60\u597d man": "and or, snow man.",
    "soft\u00adhyphen": "softhyphen.",
    "  two\n\nlines\t": "two lines.",
    "[EOS] a": "EOS a.",
    "Is it?": "Is it?",
}

FAULTS = {
    "A Boeing 747-400, a Boeing 737.": "A Boeing seven forty-seven four hundred, a Boeing seven thirty-seven.",
    "Blood pressure 120/80 mmHg, BP 135/90": (
        "Blood pressure one hundred and twenty over eighty millimeters of mercury, "
        "B P one hundred and thirty-five over ninety."
    ),
    "\u20ac2,50, \u20ac1.299,00, 3,50 \u20ac, 10,00 EUR": (
        "two euros and fifty cents, one thousand two hundred and ninety-nine euros, three euros and fifty cents, "
        "ten euros."
    ),
    "Mix 1:2, won 3:2, John 3:2": "Mix one to two, won three to two, John three two.",
    "20/20 vision, 1.000.000 people": "twenty twenty vision, one million people.",
    "3.2e-5": "three point two times ten to the power of minus five.",
    "10.0.0.1:8080": "one zero dot zero dot zero dot one, port eight zero eight zero.",
    "WWII, 401(k), A-Z, USB-C": "World War two, four oh one k, A to Z, U S B C.",
    "1080p, 720p, 50p": "ten eighty p, seven twenty p, fifty pence.",
    "per km\u00b2, in m\u00b3": "per square kilometer, in cubic meters.",
    "5\u2605 rating, 2 c. flour": "five star rating, two cups flour.",
    "Flight BA2490, code #A-1029-XZ, A7-X9, F-16": (
        "Flight B A two four nine oh, code A, one zero two nine, X Z, A seven, X nine, F-sixteen."
    ),
    "Q1-Q3, 10AM-2PM, invoice no. 2024-0098": (
        "Q one to Q three, ten a m to two p m, invoice number two zero two four, zero zero nine eight."
    ),
    "Tue 3/4, Mon.\u2013Wed., ships 12/03": "Tuesday March fourth, Monday to Wednesday, ships December third.",
    "11,313/km\u00b2, 37.7749\u00b0 N": (
        "eleven thousand three hundred and thirteen per square kilometer, thirty-seven point seven seven four nine "
        "degrees north."
    ),
    "H. G. Wells and J.R.R. Tolkien left. In the U.S. He did.": (
        "H G Wells and J R R Tolkien left. In the U S. He did."
    ),
    "c. 1450\u20131510, 1,000s, 3.0 x 10^8": (
        "circa fourteen fifty to fifteen ten, thousands, three point zero times ten to the power of eight."
    ),
    "(0)20 7946 0018, Fax: 030/1234567": (
        "oh, two oh, seven nine four six, oh oh one eight, Fax: oh three oh, one two three four five six seven."
    ),
    "\u20ac 5,-, \xa35.50p, \u20b91,50,000": (
        "five euros, five pounds and fifty pence, one hundred and fifty thousand rupees."
    ),
    "noon\u20131pm, 50-50, FY2024, V8, Route 9W": (
        "noon to one p m, fifty fifty, F Y twenty twenty-four, V eight, Route nine W."
    ),
    "12 Park Ave NW, the CEOs' plan, HDMI, #100DaysOfCode": (
        "twelve Park Avenue N W, the C E O's plan, H D M I, hashtag one hundred Days Of Code."
    ),
    "in km/h, in \u00b5m, Hawai\u02bbi": "in kilometers per hour, in micrometers, Hawai'i.",
    "Section 3(a)(ii), a B- grade": "Section three a two, a B minus grade.",
    "Call (555) 123-4567. Or 1-800-555-0199.": (
        "Call five five five, one two three, four five six seven. Or one eight hundred, five five five, oh "
        "one nine nine."
    ),
    "World War II, Henry VIII, Chapter IV": "World War two, Henry the eighth, Chapter four.",
    "US$20, -$5, 50\xa2, \xa33.5m": (
        "twenty U S dollars, minus five dollars, fifty cents, three point five million pounds."
    ),
    "\xa310\u2013\xa315, 10am\u20132pm, 5-10%, May 5-7": (
        "ten pounds to fifteen pounds, ten a m to two p m, five to ten percent, May fifth to seventh."
    ),
    "2 1/2 cups, 5/8 inch, 10ft, 60W, 5'10\"": (
        "two and a half cups, five eighths of an inch, ten feet, sixty watts, five foot ten."
    ),
    "Stra\xdfe, \u0141\xf3d\u017a, sm\xf8rrebr\xf8d, \xde\xf3r": "Strasse, Lodz, smorrebrod, Thor.",
    "Visit www.example.com/docs or mail a.person@example.org": (
        "Visit w w w dot example dot com slash docs or mail a dot person at example dot org."
    ),
}
PROSE = {
    # phone numbers
    "Phone: 555-123-4567 or 555.123.4567": (
        "Phone: five five five, one two three, four five six seven or five five five, one two three, four "
        "five six seven."
    ),
    "Reach me at +1 212 555 0142.": "Reach me at plus one, two one two, five five five, oh one four two.",
    "London: +44 20 7946 0958": "London: plus four four, two oh, seven nine four six, oh nine five eight.",
    "Ring 020 7946 0958 after six.": "Ring oh two oh, seven nine four six, oh nine five eight after six.",
    "Call 1-800-FLOWERS today": "Call one eight hundred, FLOWERS today.",
    "(212) 555-0100 ext. 12": "two one two, five five five, oh one oh oh, extension one two.",
    "Dial 911 now": "Dial nine one one now.",
    "Text 5551234567": "Text five five five one two three four five six seven.",
    "1 (800) 555-0100": "one eight hundred, five five five, oh one oh oh.",
    "SSN 123-45-6789": "S S N one two three, four five, six seven eight nine.",
    "Card 4111 1111 1111 1111": "Card four one one one, one one one one, one one one one, one one one one.",
    "ISBN 978-3-16-148410-0": "I S B N nine seven eight, three, one six, one four eight four one zero, zero.",
    # Roman numerals
    "Louis XIV and Elizabeth I, of Pope John Paul II": (
        "Louis the fourteenth and Elizabeth the first, of Pope John Paul the second."
    ),
    "King George V died.": "King George the fifth died.",
    "When I told Henry I was late": "When I told Henry I was late.",
    "Richard III of England": "Richard the third of England.",
    "Super Bowl LVIII": "Super Bowl fifty-eight.",
    "Part III, Volume XII, Book V": "Part three, Volume twelve, Book five.",
    "Chapters I and II, Acts IV-V": "Chapters one and two, Acts four to five.",
    "Act II, Scene iii": "Act two, Scene three.",
    "Apollo XIII and Final Fantasy VII": "Apollo thirteen and Final Fantasy seven.",
    "in the XIX century": "in the nineteenth century.",
    "Vol. II, Title IX, Type II diabetes": "Volume two, Title nine, Type two diabetes.",
    "World War I began; I went.": "World War one began; I went.",
    "Copyright MCMXCIV": "Copyright nineteen ninety-four.",
    "John D. Rockefeller III": "John D. Rockefeller the third.",
    "Malcolm X spoke.": "Malcolm X spoke.",
    "Vitamin C, Plan B and MI6": "Vitamin C, Plan B and M I six.",
    "Queen Elizabeth II's reign": "Queen Elizabeth the second's reign.",
    "Did I mix the CD?": "Did I mix the C D?",
    # money
    "It costs $20 USD": "It costs twenty U S dollars.",
    "USD 20, 20 EUR, CHF 5.50": "twenty U S dollars, twenty euros, five Swiss francs and fifty cents.",
    "A$5, C$10, HK$100": "five Australian dollars, ten Canadian dollars, one hundred Hong Kong dollars.",
    "$5-10, $10-$20 million": "five to ten dollars, ten to twenty million dollars.",
    "a $5 bill and a $1.5 million house": "a five dollar bill and a one point five million dollar house.",
    "$2.5B, €5k, £3bn, $1.2 trillion": (
        "two point five billion dollars, five thousand euros, three billion pounds, one point two trillion dollars."
    ),
    "50p, 1p, 1¢": "fifty pence, one penny, one cent.",
    "$.99 or $0.99": "ninety-nine cents or ninety-nine cents.",
    "$20/month, $15/hr": "twenty dollars per month, fifteen dollars per hour.",
    "₹500, ¥1,000, ₽10, ₿2": "five hundred rupees, one thousand yen, ten rubles, two bitcoins.",
    "−$3.20": "minus three dollars and twenty cents.",
    "US$1.50": "one U S dollar and fifty cents.",
    "He owes me $5 and £1.": "He owes me five dollars and one pound.",
    "Rs. 500": "five hundred rupees.",
    # ranges
    "9:00–17:00, 9-5": "nine o'clock to seventeen hundred, nine to five.",
    "10-11am": "ten to eleven a m.",
    "pages 12–15, pp. 3-7": "pages twelve to fifteen, pages three to seven.",
    "5%–10%": "five percent to ten percent.",
    "5 kg - 10 kg, 5-10 kg": "five kilograms to ten kilograms, five to ten kilograms.",
    "20–25°C": "twenty to twenty-five degrees Celsius.",
    "1914–18, 2019-2021, 1990-present": (
        "nineteen fourteen to eighteen, twenty nineteen to twenty twenty-one, nineteen ninety to present."
    ),
    "5–7 May 2020": "May fifth to seventh, twenty twenty.",
    "May 5 – June 2": "May fifth to June second.",
    "Mon-Fri, Jan–Mar": "Monday to Friday, January to March.",
    "1980s-1990s": "nineteen eighties to nineteen nineties.",
    "We won 3-1.": "We won three to one.",
    "5 - 3 = 2": "five minus three equals two.",
    "ages 5–10 and grades 1st–3rd": "ages five to ten and grades first to third.",
    # dates and times
    "2024-05-01T14:30:00Z": "May first, twenty twenty-four, fourteen thirty, U T C.",
    "11/20/26": "November twentieth, twenty twenty-six.",
    "20.11.2026": "November twentieth, twenty twenty-six.",
    "on 12/25": "on December twenty-fifth.",
    "5:30 PM EST, 14:30 GMT+2": "five thirty p m E S T, fourteen thirty G M T plus two.",
    "UTC-5:30": "U T C minus five thirty.",
    "5.30pm": "five thirty p m.",
    "0800 hours": "oh eight hundred hours.",
    "15:30:45": "fifteen thirty and forty-five seconds.",
    "Jan. 2020, Sept 2021": "January twenty twenty, September twenty twenty-one.",
    "Wed, 5 May 2021 at 9am": "Wednesday, May fifth, twenty twenty-one at nine a m.",
    "in 1066 and 1776": "in ten sixty-six and seventeen seventy-six.",
    "the 21ST century, the 1ST": "the twenty-first century, the first.",
    "the 1800s, the 1990's": "the eighteen hundreds, the nineteen nineties.",
    "2h30m": "two hours thirty minutes.",
    # fractions and units
    "1½ cups, ¾ tsp": "one and a half cups, three quarters of a teaspoon.",
    "3 3/4 miles, 1/4 inch": "three and three quarters miles, one quarter inch.",
    "3/4-inch pipe": "three quarter inch pipe.",
    "8/10, 7.5/10": "eight out of ten, seven point five out of ten.",
    "2/3 of them, 1 1/8 lbs": "two thirds of them, one and an eighth pounds.",
    "a 10-ft pole, a 5-km run": "a ten foot pole, a five kilometer run.",
    "12\" pizza, 6' tall": "twelve inches pizza, six feet tall.",
    '"I want 12" he said': '"I want twelve" he said.',
    "5 m², 10 km2": "five square meters, ten square kilometers.",
    "100 Mbps, 16GB, 3.5 GHz": "one hundred megabits per second, sixteen gigabytes, three point five gigahertz.",
    "5 lbs., 3 oz, 1 gal": "five pounds, three ounces, one gallon.",
    "350F for 30 min.": "three hundred and fifty degrees Fahrenheit for thirty minutes.",
    "90 km/h or 25 m/s": "ninety kilometers per hour or twenty-five meters per second.",
    "40°42'46\"N": "forty degrees, forty-two minutes, forty-six seconds north.",
    "5 μm, 10 µg, 5kΩ": "five micrometers, ten micrograms, five kilohms.",
    "3 x 4, 1920x1080, 10x12 ft": "three by four, nineteen twenty by ten eighty, ten by twelve feet.",
    "5in wide": "five inches wide.",
    "a 100 m race, 5m people": "a one hundred meter race, five million people.",
    "-5°C": "minus five degrees Celsius.",
    "60 W bulb, 5 W. Main St.": "sixty watts bulb, five West Main Street.",
    "1500 mAh, 230V, 5A, 50dB": (
        "fifteen hundred milliamp hours, two hundred and thirty volts, five amps, fifty decibels."
    ),
    # letters
    "Ærø, œuvre, Reykjavík, Đorđe": "Aero, oeuvre, Reykjavik, Dorde.",
    "Москва": "Moskva.",
    "p\u0430yp\u0430l": "paypal.",
    "the α particle, Ελλάδα": "the alpha particle, Ellada.",
    "Ｆｕｌｌ ① ٣": "Full one three.",
    "zero\u200bwidth\ufeff a\u0007b": "zerowidth a b.",
    "\ud800ok": "ok.",
    "don\u2019t \u2018quote\u2019": "don't 'quote'",
    # addresses
    "https://github.com/a-b/c_d?x=1#top": (
        "github dot com slash a dash b slash c underscore d question mark x equals one hash top."
    ),
    "See example.co.uk.": "See example dot co dot u k.",
    "mail john_doe+news@mail.example.com!": "mail john underscore doe plus news at mail dot example dot com!",
    "Node.js and setup.py": "Node dot j s and setup dot p y.",
    "open report_final-2.pdf": "open report underscore final dash two dot p d f.",
    "/usr/local/bin": "slash usr slash local slash bin.",
    "C:\\Users\\me": "C colon backslash Users backslash me.",
    "#ThrowbackThursday #1 C# C++": "hashtag Throwback Thursday number one C sharp C plus plus.",
    "thanks @john_doe.": "thanks at john underscore doe.",
    "r/AskReddit": "r slash AskReddit.",
    "192.168.0.1": "one nine two dot one six eight dot zero dot one.",
    "v2.1.3, v2, version 1.10": "version two point one point three, version two, version one point ten.",
    # abbreviations
    "Dr. Smith lives on Mulholland Dr.": "Doctor Smith lives on Mulholland Drive.",
    "St. Mary's on Main St. The shop": "Saint Mary's on Main Street. The shop.",
    "45 W. 23rd St. Apt 5B": "forty-five West twenty-third Street. Apt five B.",
    "Part II of Henry IV; Rocky III": "Part two of Henry the fourth; Rocky three.",
    "https://zoom.us/j/1234567 and Hastings (1066)": "zoom dot u s slash j slash one two three four five six seven and "
    "Hastings (ten sixty-six)",
    "10 \u00b5L, 50 Mbit/s": "ten microliters, fifty megabits per second.",
    "At 221B Baker St., London": "At two hundred and twenty-one B Baker Street, London.",
    "THE FBI KNOWS. I DO NOT LIKE IT": "THE F B I KNOWS. I DO NOT LIKE IT.",
    "It's 5:00 AM here, i.e. 10:00 UTC.": "It's five a m here, that is ten o'clock U T C.",
    "He's 6'2\" and weighs 180 lbs.": "He's six foot two and weighs one hundred and eighty pounds.",
    "$2.50 each, 100g for 99p": "two dollars and fifty cents each, one hundred grams for ninety-nine pence.",
    "CH3COOH, 5 mg/kg and Fe2O3": "C H three C O O H, five milligrams per kilogram and F E two O three.",
    "Mount St. Helens": "Mount Saint Helens.",
    "221 Baker St, London": "two hundred and twenty-one Baker Street, London.",
    "123 N. Main St., Springfield, IL 62704": (
        "one hundred and twenty-three North Main Street, Springfield, Illinois six two seven oh four."
    ),
    "No. I won't. See no. 5 and Nos. 1-3": "No. I won't. See number five and numbers one to three.",
    "Fig. 3, p. 12, Vol. 2, Ch. 5": "Figure three, page twelve, Volume two, Chapter five.",
    "Jane Doe, Ph.D., et al.": "Jane Doe, P H D, et al.",
    "w/ milk, w/o sugar": "with milk, without sugar.",
    "c. 1900, ca. 1850": "circa nineteen hundred, circa eighteen fifty.",
    # acronyms
    "The API, a TV, a PC, the US": "The A P I, a T V, a P C, the U S.",
    "TVs, the BBC's, NASA's IDs": "T V's, the B B C's, NASA's I D's.",
    "STOP IT NOW, the IT team": "STOP IT NOW, the I T team.",
    "The PDF, HTML and R&D": "The P D F, H T M L and R and D.",
    "AT&T, a PhD": "A T and T, a P H D.",
    "an MP3, 4K, A7-X9": "an M P three, four K, A seven, X nine.",
    "UNESCO and NATO met.": "UNESCO and NATO met.",
    # signs
    "H2O, CO2, C6H12O6, H2SO4": "H two O, C O two, C six H twelve O six, H two S O four.",
    "CO₂ and x² + y³": "C O two and x squared plus y cubed.",
    "E = mc²": "E equals mc squared.",
    "10^6, 10⁻³": "ten to the power of six, ten to the power of minus three.",
    "3 × 4 = 12, 8 ÷ 2": "three times four equals twelve, eight divided by two.",
    "x ≤ 5, ±2, ≈10": "x less than or equal to five, plus or minus two, approximately ten.",
    "a < b, 5 > 3, ~20": "a less than b, five greater than three, about twenty.",
    "NaCl": "N A C L.",
    "a 3:1 ratio, 16:9": "a three to one ratio, sixteen nine.",
    # layout
    "# Title\n\nText here": "Title. Text here.",
    "- eggs\n- milk\n- flour": "eggs. milk. flour.",
    "1. Mix\n2. Bake": "one. Mix. two. Bake.",
    "eggs\nmilk\nflour": "eggs, milk, flour.",
    "This line was wrapped by an old mail program at its width\nand goes on here": (
        "This line was wrapped by an old mail program at its width and goes on here."
    ),
    "**bold** and _it_ and `code` ~~x~~": "bold and it and code x.",
    "[the docs](https://a.org/b) and ![a cat](c.png)": "the docs and a cat.",
    "| a | b |\n|---|---|\n| 1 | 2 |": "a, b. one, two.",
    "> quoted\n\nAnswer": "quoted. Answer.",
    "Tom &amp; Jerry &lt;3 &nbsp;&copy;": "Tom and Jerry less than three copyright.",
    "<p>Hi <b>there</b></p><p>Bye</p>": "Hi there. Bye.",
    "```python\nx = 1\n```": "x equals one.",
    "Water boils.[1] It does.[citation needed]": "Water boils. It does.",
    "- [x] done\n- [ ] open": "done. open.",
    "Well :-) ok": "Well ok.",
    "Nice \U0001f600 day \u2764\ufe0f": "Nice day.",
}
INVENTED = {
    "1 000 000 people, 10 000 or 10'000": "one million people, ten thousand or ten thousand.",
    "Text 741741 is 1 234 567": (
        "Text seven four one seven four one is one million two hundred and thirty-four thousand five hundred "
        "and sixty-seven."
    ),
    "CHF 20.-, ₹1.5 lakh, 3 crore": "twenty Swiss francs, one point five lakh rupees, three crore.",
    "1-1/2 lbs, 1/2-3/4 cup, ½x": "one and a half pounds, one half to three quarters of a cup, one half x.",
    '7/8", 11/16" and 2" x 4"': "seven eighths of an inch, eleven sixteenths of an inch and two inches by four inches.",
    "6 ft 2 in, 6 ft. 2 in. and 3 in,": "six foot two inches, six feet two inches and three inches,",
    "won 10-2-1, code 12-34-56": "won ten, two, one, code one two, three four, five six.",
    "7 − 2 = 5, 12° C": "seven minus two equals five, twelve degrees Celsius.",
    "1 tsp. salt, 1/2 t. pepper, 3 T. oil": "one teaspoon salt, one half teaspoon pepper, three tablespoons oil.",
    "2024/04/01, 1-Apr-2024, Apr '24": (
        "April first, twenty twenty-four, April first, twenty twenty-four, April twenty twenty-four."
    ),
    "due 5/6, until 3/4": "due May sixth, until March fourth.",
    "the 20th c., a time of 2'30\"": "the twentieth century, a time of two minutes thirty seconds.",
    "8:05 a.m. PT, 1 Park Ave. NW, Washington": "eight oh five a m P T, one Park Avenue N W, Washington.",
    "IBAN DE89 3704 0044 0532 0130 00": (
        "IBAN D E eight nine, three seven zero four, zero zero four four, zero five three two, zero one three"
        " zero, zero zero."
    ),
    "VIN 1HGCM82633A004352": "VIN one H G C M eight two six three three A zero zero four three five two.",
    "at 00:1A:2B:3C:4D:5E": "at zero zero, one A, two B, three C, four D, five E.",
    "Seat 14C, Row 12F, 350F oven": "Seat fourteen C, Row twelve F, three hundred and fifty degrees Fahrenheit oven.",
    "v1.0.0-beta.2, v2.0-rc1": "version one point zero point zero, beta two, version two point zero, R C one.",
    "~/.bashrc, IMG_1.JPG, *.txt, .NET": "tilde slash dot bashrc, IMG underscore one dot J P G, dot t x t, dot net.",
    "localhost:3000/x": "localhost colon three thousand slash x.",
    "vols. 3-5, Fl. 3, min. 3, 20 min. 3 times": (
        "volumes three to five, Floor three, minimum three, twenty minutes three times."
    ),
    "Act III, scene ii, chapter IV; the part I like": "Act three, scene two, chapter four; the part I like.",
    "Well, OK. Tulsa, OK 74101; Dayton, OH": "Well, okay. Tulsa, Oklahoma seven four one oh one; Dayton, Ohio.",
    "A CPA of an NGO; AI": "A C P A of an N G O; A I.",
    "A ∩ B = ∅, ∀x": "A intersection B equals the empty set, for all x.",
    "Ηello, wоrld, Δt": "Hello, world, delta t.",
    "Thanks <3 ok :D now": "Thanks ok now.",
    "every 1.x version": "every one point x version.",
}
MORE = dict(
    line.encode().decode("unicode_escape").split(" => ")
    for line in Path(__file__).with_name("spoken_texts.txt").read_text("ascii").splitlines()
)
ALL = {**SPOKEN, **FAULTS, **PROSE, **INVENTED, **MORE}


@pytest.mark.parametrize("text", ALL, ids=ascii)
def test_spoken(text):
    assert normalize(text, KNOWN) == ALL[text]


@settings(max_examples=300, deadline=None)
@given(st.text("abXY 0123456789.,:!?'-/$\u20ac%\u00e9\u00bd\u00b2\u2665&\n", max_size=30) | st.text(max_size=20))
@example("5 etc")
@example("$1,0")
def test_any_text_ends_up_in_known_characters(text):
    spoken = normalize(text, KNOWN)
    assert any(c in spoken.lower() for c in "abcdefghijklmnopqrstuvwxyz") or not set(text) & set("ab0123456789XY")
    assert set(spoken.lower()) <= KNOWN | {" "} and "  " not in spoken


@pytest.mark.parametrize("spoken", ALL.values(), ids=ascii)
def test_normalizing_twice_changes_nothing(spoken):
    assert normalize(spoken, KNOWN) == spoken


def test_emoji_are_named_on_demand():
    assert normalize(name_emoji("Nice \U0001f600, \u2764\ufe0f"), KNOWN) == "Nice grinning face, heart."
    assert normalize("Nice \U0001f600, \u2764\ufe0f", KNOWN) == "Nice,"


def test_letters_without_a_reading_are_named_by_a_warning():
    with pytest.warns(UserWarning, match=r"^text: \u4f60 are not spoken.*Write them in Latin letters"):
        assert normalize("snow \u4f60", KNOWN) == "snow."


def test_a_warning_names_the_text_once(processor):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        processor(["It was a dog.", "It was \u4f60.\n\n" + "It was a dog. " * 20])
    (warning,) = caught
    assert str(warning.message).startswith("text[1]: \u4f60 are not spoken")


NUMBERS = (
    st.integers(0, 10**12).map(str)
    | st.floats(0, 10**6).map(lambda x: f"{x:.2f}")
    | st.integers(0, 10**9).map("{:,}".format)
)
AMOUNTS = st.tuples(
    st.sampled_from(["", "$", "\u20ac", "US$", "-$", "#", "~", "v", "No. ", "EUR ", "+", "(", "May ", "on ", "p. "]),
    NUMBERS,
    st.sampled_from(
        ["", "%", "k", "m", "bn", " kg", "ft", '"', "'", "am", " p.m.", "th", "s", "\u00b0C", "\u00a2", "/2", "\u00bd"]
    ),
).map("".join)
SHAPES = st.lists(AMOUNTS, min_size=1, max_size=4).flatmap(
    lambda amounts: st.sampled_from([" ", "-", "\u2013", "/", ":", " x ", ", ", " to ", "\n", "\n- "]).map(
        lambda joint: joint.join(amounts)
    )
)


@settings(max_examples=300, deadline=None)
@given(SHAPES)
def test_amounts_dates_and_ranges_in_all_shapes_become_words(text):
    spoken = normalize(text, KNOWN)
    assert set(spoken.lower()) <= KNOWN | {" "} and re.search("[a-z]", spoken)
    if "-" not in spoken:  # a hyphen that is left may join what is now a word to a month
        assert normalize(spoken, KNOWN) == spoken


@settings(max_examples=300, deadline=None)
@given(st.lists(st.from_regex(r"\A[a-z]{3,9}\Z") | st.just("\u00e9t\u00e9"), min_size=1, max_size=8))
def test_plain_words_are_left_as_they_are(words):
    text = " ".join(words)
    assert normalize(text, KNOWN) == text.replace("\u00e9", "e") + "."


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_any_unicode_is_read_or_named_by_a_warning(text):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spoken = normalize(text, KNOWN)
    latin = [c for c in text if c.isascii() and c.isalnum()]
    assert caught or bool(re.search("[a-z]", spoken, re.I)) >= bool(latin)


def test_numbers_are_those_of_num2words():
    for number in [*range(0, 3000, 7), 10**5, 10**6 + 5, 123_456_789, 10**9 + 1, 999_999_999_999_999]:
        for kind in ("cardinal", "ordinal"):
            assert spell_number(number, kind) == num2words(number, to=kind).replace(",", "")


def test_without_the_library_digits_are_read_one_by_one(monkeypatch):
    monkeypatch.setattr(text_tables_smalle, "num2words", None)
    monkeypatch.setattr(text_normalization_smalle, "spell_number", spell_number.__wrapped__)  # uncached
    spoken = "In one nine nine nine, five dollars and two zero cents, three point five."
    assert normalize("In 1999, $5.20, 3.5", KNOWN) == spoken


@pytest.mark.parametrize("rule", [*MARKUP, *RULES], ids=lambda rule: rule.name)
def test_each_rule_reads_its_example(rule):
    assert re.search(rule.pattern, rule.example)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rules_whose_example_has_a_digit_need_one(rule):
    texts = [re.sub(r"\d", "x", text) for text in [other.example for other in RULES] + list(ALL)]
    assert not re.search(r"\d", rule.example) or not any(re.search(rule.pattern, text) for text in texts)


REPEATED = [
    *(rule.example[:length] for rule in (*MARKUP, *RULES) for length in (99, len(rule.example) // 2)),
    *"7 a A I ( [ < > ` * _ # - . \n / @ $ ' \" + ^ ! | ~ \\ x \u00b2 \u0301 \u0436 \u03b1 \u00e9 \U0001f600".split(
        " "
    ),
    *",111 $1 1. 1- 1: 1/ a. a/ a- a_ 1a (H H2 A1 a\u0436 x\u00b2 [[] <b **a www.- http:// &amp; 0x".split(),
    *("etc. ", "5 kg ", "May 5 ", "U.S. ", "0 ", "IV, ", "the ", "\n", " ", "\u0301\u0316"),
]


@pytest.mark.parametrize("part", [part for part in dict.fromkeys(REPEATED) if part], ids=ascii)
def test_time_is_proportional_to_the_length_of_a_text(part):
    def seconds(length):
        begun = time.process_time()
        normalize(("1" + part * (length // len(part) + 1))[:length], KNOWN)
        return time.process_time() - begun

    seconds(1000)
    shortest, middle, longest = (seconds(length) for length in (3000, 6000, 12000))
    assert longest < 7 * shortest + 0.1  # 4 times as long; a quadratic rule needs 16 times
    assert middle < 4 * shortest + 0.1


def test_ten_thousand_digits_take_less_than_a_second():
    begun = time.process_time()
    assert normalize("7" * 10_000, KNOWN).split()[-1] == "seven."
    assert time.process_time() - begun < 1


SENTENCES = (
    "The old house stood at the end of a long road. Nobody had lived there for years. Children said that a light moved "
    "in the windows at night. In 1984, it cost $5.20. "
)
SIZE = 2**18


def chosen(characters):
    return "".join(random.Random(0).choices(characters, k=SIZE))


@pytest.mark.parametrize(
    "text",
    [
        (SENTENCES * (SIZE // 100))[:SIZE],
        chosen(string.printable),
        chosen(string.digits + " ,."),
        chosen(string.ascii_uppercase + " "),
        chosen([chr(code) for code in range(32, 0x3000)]),
    ],
    ids=["prose", "signs", "digits", "capitals", "unicode"],
)
@pytest.mark.filterwarnings("ignore:text")
def test_a_megabyte_takes_seconds(text):
    begun = time.process_time()
    normalize(text, KNOWN)
    assert time.process_time() - begun < 4  # 0.5 to 1.2 on a core of its own, twice that on a crowded one
