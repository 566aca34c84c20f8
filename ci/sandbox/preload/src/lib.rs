//! Leads the calls through which libploop reaches the ploop driver to the sandbox.
