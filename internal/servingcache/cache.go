package servingcache

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// retryAfter is how long a failed write waits, unless a newer state is offered.
const retryAfter = time.Second

// Options are what a Cache is made of.
type Options struct {
	Path   string       // the file; its directory exists
	Logger hclog.Logger // nil: silent
}

// Cache writes the state offered last to disk.
type Cache struct {
	path   string
	logger hclog.Logger

	mu       sync.Mutex
	pending  *offer        // not on disk yet
	waiting  time.Time     // since when there is something that is not on disk
	written  uint64        // index of what is on disk
	failures uint64        // writes that failed
	wake     chan struct{} // has room for one
}

type offer struct {
	index uint64
	state io.WriterTo
}

// New returns a cache; Run makes it write.
func New(o Options) *Cache {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	return &Cache{path: o.Path, logger: o.Logger, wake: make(chan struct{}, 1)}
}

// Offer makes state the one to write next, in place of any offered before that
// is not on disk yet. index is its Raft index. The state must not change afterwards:
// it is written later, from another goroutine.
func (c *Cache) Offer(index uint64, state io.WriterTo) {
	c.mu.Lock()
	if c.waiting.IsZero() {
		c.waiting = time.Now()
	}
	c.pending = &offer{index: index, state: state}
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default: // Run has been told already
	}
}

// WrittenIndex is the index of the state that this process wrote last; 0 before
// the first write.
func (c *Cache) WrittenIndex() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.written
}

// Lag is for how long a state has been offered that is not on disk; 0: the disk
// has the newest.
func (c *Cache) Lag() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting.IsZero() {
		return 0
	}
	return time.Since(c.waiting)
}

// Failures counts the writes that failed; each is tried again.
func (c *Cache) Failures() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failures
}

// Run writes what is offered until ctx ends, then the newest state once more if
// the disk does not have it. Its error is that of the last write; a write that
// fails earlier is logged and repeated.
func (c *Cache) Run(ctx context.Context) error {
	for {
		retry := (<-chan time.Time)(nil)
		if err := c.write(); err != nil {
			c.logger.Error("serving cache was not written; trying again", "error", err)
			retry = time.After(retryAfter)
		}
		select {
		case <-c.wake:
		case <-retry:
		case <-ctx.Done():
			return c.write()
		}
	}
}

// write puts the newest state on disk, if there is one that is not there.
func (c *Cache) write() error {
	c.mu.Lock()
	newest, began := c.pending, time.Now()
	c.mu.Unlock()
	if newest == nil {
		return nil
	}
	err := store(c.path, newest.index, newest.state)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.failures++
		return fmt.Errorf("serving cache: %w", err)
	}
	c.written = newest.index
	if c.pending == newest {
		c.pending, c.waiting = nil, time.Time{}
	} else {
		c.waiting = began // what was offered since is younger than this write
	}
	return nil
}
