// Package eboot is the vocabulary of the boot service: the nouns that every
// other package speaks in, and the sentinel errors that every edge translates.
//
// A server is one `eboot agent` process. A slave is an Erlang node that boots
// from us, known by its IPv4 address. A whitelist entry says which addresses may
// boot, and from which channel. A blob is file content named by its SHA-256
// Digest; a Manifest is the file tree of one bundle, itself a blob, whose digest
// is the bundle's identity. A Bundle is an immutable tree published as
// NAME@VERSION for one ERTS version. A Channel points to one bundle per ERTS
// version. The Generation rises by one with every change of what slaves may boot.
//
// The package imports only the standard library, does no I/O, starts no
// goroutine and holds no state. It is the only package that all others may
// import.
package eboot
