"""The ground that all else stands on: errors, hashes, atomic writes, manifests, tables, progress, energy, this machine.
Knows nothing of models, teachers or questions. Imports nothing of primekd."""
