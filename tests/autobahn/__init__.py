"""The Autobahn|Testsuite against both front ends: python -m tests.autobahn, from the root of the checkout."""
