"""Icons drawn for this project where the emoji sets have none, or an ambiguous one.

Each entry is the body of an SVG with the view box ``0 0 64 64``. They are read only by ``build_atlas.py``.
"""

DRAWN: dict[str, str] = {
    "fire hydrant": """<g fill="#d8342c"><rect x="20" y="24" width="24" height="30"/><rect x="14" y="54" width="36"
        height="7" rx="2"/><path d="M20 24a12 14 0 0 1 24 0z"/><rect x="10" y="30" width="44" height="10" rx="3"/>
        <rect x="28" y="4" width="8" height="8"/></g><circle cx="32" cy="37" r="6" fill="#f5d13d"/>
        <rect x="17" y="21" width="30" height="4" fill="#8f1d18"/>""",
    "parking meter": """<rect x="28" y="34" width="8" height="28" fill="#6b737b"/><path d="M16 36V18a16 16 0 0 1 32 0
        v18z" fill="#4b5560"/><path d="M21 18a11 11 0 0 1 22 0z" fill="#cfe9f7"/><rect x="22" y="23" width="20"
        height="6" fill="#f2c531"/><rect x="30" y="12" width="2" height="6" fill="#d22"/>""",
    "bench": """<g fill="#a5672f"><rect x="6" y="16" width="52" height="6"/><rect x="6" y="25" width="52" height="6"/>
        <rect x="3" y="37" width="58" height="7"/></g><g fill="#34383d"><rect x="10" y="12" width="5" height="46"/>
        <rect x="49" y="12" width="5" height="46"/></g>""",
    "snowboard": """<g transform="rotate(38 32 32)"><rect x="23" y="1" width="18" height="62" rx="9" fill="#7a3fd0"/>
        <rect x="23" y="17" width="18" height="6" fill="#1c1c22"/><rect x="23" y="41" width="18" height="6"
        fill="#1c1c22"/><path d="M25 29h14v6H25z" fill="#39e0c8"/></g>""",
    "baseball bat": """<g transform="rotate(45 32 32)"><path d="M28 58V36l-4-18V6a8 6 0 0 1 16 0v12l-4 18v22z"
        fill="#d9a35a"/><rect x="28" y="44" width="8" height="15" fill="#2b2b33"/><rect x="25" y="58" width="14"
        height="5" rx="2" fill="#8d5f25"/></g>""",
    "baseball glove": """<path d="M12 60c-9-12-9-26-2-31l5-18c2-6 9-5 8 1 1-8 9-8 9 0 2-8 10-6 9 1 2-5 9-4 8 3l-2 14
        c6-4 12 0 9 6-5 12-9 18-14 24z" fill="#8a4b20"/><g stroke="#4f270d" stroke-width="3" fill="none">
        <path d="M23 12l-2 18M32 12v17M41 13l-1 17"/></g><circle cx="30" cy="43" r="10" fill="#fff"/>
        <path d="M23 36c5 4 5 10 0 14M37 36c-5 4-5 10 0 14" stroke="#d22" stroke-width="2" fill="none"/>""",
    "surfboard": """<g transform="rotate(-24 32 32)"><path d="M32 0c14 14 15 46 5 62H27C17 46 18 14 32 0z"
        fill="#ffb02e"/><path d="M32 0v62" stroke="#fff" stroke-width="3"/><path d="M20 34q12-8 24 0l-1 9q-11-7-22 0z"
        fill="#e0342f"/></g>""",
    "tennis racket": """<g transform="rotate(40 32 32)"><ellipse cx="32" cy="20" rx="16" ry="19" fill="#f3f7e4"
        stroke="#1d63c4" stroke-width="5"/><g stroke="#8b9a8b" stroke-width="1.6"><path d="M25 5v30M32 3v34M39 5v30
        M18 13h28M17 20h30M18 27h28"/></g><rect x="28" y="39" width="8" height="24" fill="#222"/></g>""",
    "fork": """<g fill="#9aa7b3" transform="rotate(20 32 32)"><path d="M20 2h5v18h4V2h6v18h4V2h5v22q0 9-8 10v26
        a4 4 0 0 1-8 0V34q-8-1-8-10z"/></g>""",
    "dining table": """<ellipse cx="32" cy="22" rx="31" ry="10" fill="#b9783c"/><path d="M1 22v5a31 10 0 0 0 62 0v-5
        a31 10 0 0 1-62 0z" fill="#8a5424"/><g fill="#6e421b"><rect x="10" y="32" width="5" height="26"/>
        <rect x="49" y="32" width="5" height="26"/><rect x="29" y="35" width="6" height="27"/></g>""",
    "remote": """<g transform="rotate(24 32 32)"><rect x="20" y="2" width="24" height="60" rx="6" fill="#2d3036"/>
        <circle cx="32" cy="11" r="4" fill="#e33"/><circle cx="32" cy="25" r="8" fill="#9aa0a8"/><g fill="#dfe3e8">
        <rect x="25" y="38" width="5" height="4"/><rect x="34" y="38" width="5" height="4"/><rect x="25" y="45"
        width="5" height="4"/><rect x="34" y="45" width="5" height="4"/><rect x="25" y="52" width="5" height="4"/>
        <rect x="34" y="52" width="5" height="4"/></g></g>""",
    "microwave": """<rect x="1" y="14" width="62" height="38" rx="4" fill="#c9cdd3"/><rect x="6" y="19" width="37"
        height="28" fill="#22303c"/><rect x="11" y="24" width="27" height="18" fill="#f0b84a"/><rect x="48" y="19"
        width="11" height="6" fill="#39d353"/><circle cx="53" cy="34" r="4" fill="#555c66"/><rect x="48" y="42"
        width="11" height="5" fill="#555c66"/>""",
    "oven": """<rect x="6" y="3" width="52" height="58" rx="3" fill="#e8e8ea"/><rect x="6" y="3" width="52" height="13"
        fill="#3b3f46"/><g fill="#ff5a36"><circle cx="16" cy="9" r="4"/><circle cx="28" cy="9" r="4"/><circle cx="40"
        cy="9" r="4"/></g><rect x="12" y="26" width="40" height="26" fill="#26282c"/><rect x="12" y="20" width="40"
        height="3" fill="#7d838c"/><path d="M20 50q4-12 12-16 8 4 12 16z" fill="#ff8a2b"/>""",
    "toaster": """<path d="M6 56V30q0-10 10-10h32q10 0 10 10v26z" fill="#bcc6cf"/><g fill="#c98b46"><rect x="17" y="5"
        width="13" height="17" rx="4"/><rect x="34" y="5" width="13" height="17" rx="4"/></g><rect x="6" y="50"
        width="52" height="8" fill="#3e454d"/><rect x="58" y="32" width="6" height="5" fill="#222"/>""",
    "sink": """<path d="M4 34h56q0 22-16 24H20Q4 56 4 34z" fill="#f4f6f8"/><path d="M10 38h44q-2 13-13 15H23
        q-11-2-13-15z" fill="#9fc6da"/><path d="M28 34V14q0-9 9-9t9 9v6h-6v-6q0-3-3-3t-3 3v20z" fill="#6f7d88"/>
        <path d="M40 22l-3 9h9z" fill="#36a5f0"/>""",
    "refrigerator": """<rect x="14" y="1" width="36" height="62" rx="4" fill="#dfe8ee"/><rect x="14" y="21" width="36"
        height="3" fill="#7e909c"/><rect x="18" y="8" width="4" height="10" fill="#51606b"/><rect x="18" y="28"
        width="4" height="16" fill="#51606b"/><rect x="46" y="2" width="4" height="60" fill="#b5c5cf"/>""",
    "hair drier": """<path d="M4 12h36q14 0 14 12T40 36H4z" fill="#ee4f9b"/><rect x="1" y="10" width="8" height="28"
        fill="#4a2b5c"/><path d="M30 34h14l6 28H36z" fill="#b92d74"/><circle cx="42" cy="24" r="7" fill="#ffd3e8"/>""",
    "couch": """<g fill="#c2473d"><rect x="8" y="14" width="48" height="26" rx="7"/><rect x="1" y="26" width="14"
        height="26" rx="6"/><rect x="49" y="26" width="14" height="26" rx="6"/></g><rect x="13" y="34" width="38"
        height="17" rx="3" fill="#e06a5f"/><path d="M32 34v17" stroke="#a2362d" stroke-width="3"/><g fill="#5b3a1c">
        <rect x="7" y="52" width="6" height="7"/><rect x="51" y="52" width="6" height="7"/></g>""",
    "vase": """<path d="M22 2h20v6l-5 8q16 8 12 28-2 12-9 18H24q-7-6-9-18-4-20 12-28l-5-8z" fill="#2f78c9"/>
        <path d="M15 36h34v6H15z" fill="#f1f4fa"/><path d="M17 48h30l-3 5H20z" fill="#f4c542"/>""",
    "frisbee": """<ellipse cx="32" cy="34" rx="31" ry="17" fill="#e8452c"/><ellipse cx="32" cy="31" rx="31" ry="16"
        fill="#ff7a50"/><ellipse cx="32" cy="31" rx="19" ry="9" fill="#ffd9c9"/>""",
    "bottle": """<path d="M26 2h12v14q10 6 10 18v24q0 5-5 5H21q-5 0-5-5V34q0-12 10-18z" fill="#2e9e57"/><rect x="25"
        y="1" width="14" height="7" fill="#c23b2e"/><rect x="16" y="36" width="32" height="16" fill="#f4ecd0"/>""",
    "cup": """<path d="M6 12h40v36q0 10-10 10H16Q6 58 6 48z" fill="#f4f4f0"/><path d="M46 20h6q10 0 10 11T50 43h-4v-7h4
        q5 0 5-5t-5-4h-4z" fill="#d9d9d2"/><ellipse cx="26" cy="13" rx="20" ry="6" fill="#6b3f1d"/><rect x="6" y="30"
        width="40" height="8" fill="#3a7bd5"/>""",
    "bowl": """<ellipse cx="32" cy="24" rx="31" ry="9" fill="#8fb7d9"/><path d="M1 24h62q0 22-18 32H19Q1 46 1 24z"
        fill="#3565a8"/><ellipse cx="32" cy="24" rx="25" ry="6" fill="#f7f3e6"/>""",
}
