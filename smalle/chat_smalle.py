"""Conversations as chat templates of speech models take them: recordings and what they say, then a text to be spoken.

    [{"role": "user", "content": [{"type": "text", "text": "What it says."}, {"type": "audio", "path": "me.wav"}]},
     {"role": "user", "content": "What to say."}]

Roles make no difference: all is one voice.
"""

SOURCES = "audio", "path", "url"  # names under which a recording may stand


def read_message(message):
    """Text and recordings of one message."""
    content = message.get("content") if isinstance(message, dict) else None
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, (list, tuple)) or not blocks or not all(isinstance(block, dict) for block in blocks):
        raise ValueError(f"message {message!r}: expected content, a text or a list of blocks of type text or audio.")
    texts, recordings = [], []
    for block in blocks:
        sources = [block[name] for name in SOURCES if block.get(name) is not None]
        if block.get("type") == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif block.get("type") == "audio" and len(sources) == 1:
            recordings.append(sources[0])
        else:
            raise ValueError(
                f"content of type {block.get('type')!r} with {sorted(block)}: expected type 'text' with text, or type "
                "'audio' with audio, path or url."
            )
    return " ".join(texts), recordings


def read_conversation(messages):
    """The text to be spoken, that of the last message, and (recording, what it says) of each message before; a single
    recording may come without what it says, None."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"conversation={messages!r}: expected a list of messages, or a list of such lists.")
    *context, (text, recordings) = [read_message(message) for message in messages]
    if recordings:
        raise ValueError("The last message is what will be spoken: put a recording and what it says in one before it.")
    for said, recordings in context:
        if len(recordings) != 1 or not said and len(context) > 1:
            raise ValueError(
                f"A message before the last has {len(recordings)} recordings and the text {said!r}: expected one "
                "recording and what it says, the voice to speak in; one recording alone may be without."
            )
    return text, [(recording, said or None) for said, (recording,) in context]


def conversations_of(chat):
    """A chat or several as a list, and whether there were several."""
    chat = getattr(chat, "messages", chat)
    several = isinstance(chat, (list, tuple)) and bool(chat) and not isinstance(chat[0], dict)
    return [getattr(one, "messages", one) for one in chat] if several else [chat], several
