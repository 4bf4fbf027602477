"""Training of the voice converter (`smalle.voices_smalle.VoiceConverter`): `pairs`, `speaker`, `content`, `converter`,
then `assemble`, each a command."""
