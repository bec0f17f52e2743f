"""The attack suite: what a tenant, a borrowed machine or the internet could try, tried.

Attacks are values (`catalogue`), made with scapy for a declared ground (`ground`). They are sent on
the wire (`bench`, `wire`), and what was seen where is judged by pure code (`judge`).
"""
