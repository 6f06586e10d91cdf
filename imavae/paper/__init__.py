"""The paper's figures: each reads studies of ``search_spaces/paper/``, and is drawn and judged beside the published."""
