// Package metrics exposes the numbers of one server to Prometheus, which
// nothing else in eboot imports.
//
// Components do not know it: they keep their own counts, and the composition
// root registers functions that read them at every scrape. Each server has a
// Registry of its own, so that several can live in one process, with one
// exception that CollectRaft explains. The package starts no goroutine.
package metrics
