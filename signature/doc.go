// Package signature signs bundles and checks signatures, in the formats of minisign: its
// keys, its secret keys, its signature files.
//
// What is signed is a Statement: a few lines that say which bundle it is, by name, version,
// ERTS version and the digest of its manifest, and which files of it begin a boot. It is text, so
// that people can read what they sign, and a file of its own, so that a signature can be made where
// no server is and checked with `minisign -Vm STATEMENT`.
//
// A signature (eboot.Signature) has two parts, both Ed25519: of the BLAKE2b-512 of the
// statement (minisign's ED; its older Ed, of the statement itself, is read too), and of that
// signature with the trusted comment.
//
// A Trust is the keys that somebody believes and how many of them must have signed. It
// never asks for a time: a signature does not expire, and what was signed once can be served
// again for as long as the key is trusted. To take a key back is to take it out of every Trust.
//
// Nothing here does I/O or starts a goroutine. Secret keys print as their id only.
package signature
