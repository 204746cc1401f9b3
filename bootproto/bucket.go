package bootproto

import "time"

// bucket is a token bucket. The zero value is full.
type bucket struct {
	missing float64 // tokens taken and not refilled yet
	at      time.Time
}

// take takes one token, if there is one, out of a bucket that holds burst
// tokens and is refilled by rate tokens a second.
func (b *bucket) take(now time.Time, rate, burst int) bool {
	if !b.at.IsZero() {
		b.missing = max(0, b.missing-now.Sub(b.at).Seconds()*float64(rate))
	}
	b.at = now
	if b.missing+1 > float64(burst) {
		return false
	}
	b.missing++
	return true
}
