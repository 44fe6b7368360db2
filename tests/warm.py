"""What the processes of the service import, imported once: see tests/system.py."""

import pytest  # noqa: F401  # a forked process looks at the main module of its parent

import service.apps
import service.consumers.conversation
import service.consumers.outbound
import service.consumers.session
import service.ingress.app
import service.local
import service.messaging.listening
import service.operating.dead_letters
import service.operating.messages
import service.operating.topology
import service.persistence.migrations
import service.simulator.app
import service.singletons.reconciler
import service.singletons.sweeper  # noqa: F401
