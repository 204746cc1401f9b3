// Package servingcache keeps the newest replicated state on this server's disk,
// so that a server that starts alone serves slaves before Raft has a leader.
//
// Offer hands a state over and never waits. Run, the only goroutine, writes the
// state offered last: one write at a time, each to a temporary file that is synced and
// renamed, so the file is always one whole state or another. States offered during
// a write are skipped but for the last. Lag says how far the disk is behind.
//
// The file is
//
//	magic   8 bytes   "EBOOTSC1"
//	body              what the offered io.WriterTo wrote
//	index   uint64    the Raft index of the state, big-endian
//	length  uint64    of the body, big-endian
//	digest  32 bytes  SHA-256 of all the above
//
// with the length behind the body, because a state is streamed. The package does not
// know what a body means: its reader verifies it again.
package servingcache
