package bootproto

import (
	"context"
	"time"
)

const (
	firstPause   = 5 * time.Millisecond
	longestPause = time.Second
)

// backoff is the pause after a system call that failed for want of something:
// doubled each time until it works again. The zero value is ready.
type backoff struct {
	next time.Duration
}

func (b *backoff) reset() { b.next = 0 }

// wait pauses, or returns earlier when ctx ends.
func (b *backoff) wait(ctx context.Context) {
	b.next = min(max(2*b.next, firstPause), longestPause)
	timer := time.NewTimer(b.next)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
