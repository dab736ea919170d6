"""From a finished folder to the Hub: a gate, a card, and a release that is never half-published."""
