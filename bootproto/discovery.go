package bootproto

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Query is a slave that looks for a boot server.
type Query struct {
	Slave netip.AddrPort // where it asks from, IPv4; one port is one search
	Asked netip.Addr     // the address of ours that it asked; for a broadcast, our address in that network
	ERTS  string         // the version of its runtime system, as "13.1.5": at most 32 letters, digits, and .-_+~
}

// Offer is a server's willingness to boot a slave.
type Offer struct {
	Rank     int    // this server's place in the slave's order of servers, from 0
	LastRank int    // the place of the last one
	Port     uint16 // TCP port of the listener for the slave's ERTS version
}

// Answerer decides who is answered. It is called from the goroutine that
// receives, so it must not block.
type Answerer interface {
	// Answer returns an offer, or an error: then the slave hears nothing, and the
	// text of the error is logged as the reason, unless it wraps ErrUnlogged.
	Answer(Query) (Offer, error)
}

// ErrUnlogged: the query is not answered, and that is not worth a line.
var ErrUnlogged = errors.New("not answered")

// Rate limits on answers where DiscoveryOptions has zero.
const (
	DefaultAnswersPerAddress = 200
	DefaultAnswerBurst       = 1024
	DefaultAnswers           = 20000
)

// DiscoveryOptions is what a Discovery is made of.
type DiscoveryOptions struct {
	Answerer Answerer
	// Pace is the time between the answers of servers that are neighbours in a
	// slave's order. Zero: all answer at once, and the slave takes any of them.
	Pace   time.Duration
	Logger hclog.Logger // nil: nothing is logged

	// AnswersPerAddress is how many answers a second one source address gets in the
	// long run, and AnswerBurst how many at once. Many slaves may share one address,
	// and each asks three times. Zero: 200 and 1024.
	AnswersPerAddress, AnswerBurst int
	// Answers is how many answers a second all sources get together. Zero: 20,000.
	Answers int
}

// DiscoveryStats counts since New.
type DiscoveryStats struct {
	Requests  uint64 // well-formed requests
	Answers   uint64 // replies sent
	Refused   uint64 // requests that the Answerer refused
	Malformed uint64 // datagrams that are no request, or from an address that cannot be answered
	Limited   uint64 // requests not answered because of a rate limit
	Failed    uint64 // replies that could not be sent
}

// How long a search is remembered after its latest request, and how many are.
//
// A stock slave repeats a search every 500 ms while servers answer but none has
// priority 0, and at once after a pass in which all of them refused TCP. A server
// that swallows packets holds it up for 15 s (erl_prim_loader:tcp_timeout/0), so
// 20 s keeps counting over one of those. Only after silence does it sleep longer,
// 10 s and then 60 s, and then nothing of ours is on its ignore list. A search
// that was forgotten too early costs the slave one round of 500 ms for each byte
// that it ignores already: it asks again at once, and the counting goes on. More
// than needed would be worse: the next search of another boot may have the same
// source port, behind one address with many slaves, and would not be told 0 at
// first.
const (
	searchMemory = 20 * time.Second
	maxSearches  = 1 << 16
	maxBuckets   = 1 << 14
)

// search is what is remembered of one search, which is one source address and
// port: the client keeps one socket for it.
type search struct {
	answered       int // answers so far
	rank, lastRank int // of the first answer: repeats are paced by them
	latest         time.Time
}

// Discovery answers slaves that look for a boot server. It may serve several
// sockets at once.
type Discovery struct {
	options  DiscoveryOptions // no zeros, but for Pace
	refusals *refusals
	count    discoveryCounters

	mu       sync.Mutex // guards what follows
	searches aging[netip.AddrPort, search]
	buckets  aging[netip.Addr, bucket]
	all      bucket
}

// discoveryCounters are those of DiscoveryStats.
type discoveryCounters struct {
	requests, answers, refused, malformed, limited, failed atomic.Uint64
}

// NewDiscovery makes a Discovery. It starts nothing.
func NewDiscovery(options DiscoveryOptions) *Discovery {
	if options.Logger == nil {
		options.Logger = hclog.NewNullLogger()
	}
	options.AnswersPerAddress = positive(options.AnswersPerAddress, DefaultAnswersPerAddress)
	options.AnswerBurst = positive(options.AnswerBurst, DefaultAnswerBurst)
	options.Answers = positive(options.Answers, DefaultAnswers)
	// A bucket left alone for this long is full, as a new one is.
	refill := time.Duration(options.AnswerBurst) * time.Second / time.Duration(options.AnswersPerAddress)
	return &Discovery{
		options:  options,
		refusals: &refusals{logger: options.Logger},
		searches: aging[netip.AddrPort, search]{period: searchMemory, limit: maxSearches},
		buckets:  aging[netip.Addr, bucket]{period: refill, limit: maxBuckets},
	}
}

// positive returns n, or the default when n is not positive.
func positive[N int | time.Duration](n, otherwise N) N {
	if n > 0 {
		return n
	}
	return otherwise
}

// Stats returns the counters.
func (d *Discovery) Stats() DiscoveryStats {
	return DiscoveryStats{
		Requests:  d.count.requests.Load(),
		Answers:   d.count.answers.Load(),
		Refused:   d.count.refused.Load(),
		Malformed: d.count.malformed.Load(),
		Limited:   d.count.limited.Load(),
		Failed:    d.count.failed.Load(),
	}
}

// Serve answers what arrives on a socket made by ListenDiscovery, and closes it.
// It returns nil when ctx has ended, and an error when the socket fails. Answers
// that were still waiting for their time are dropped.
func (d *Discovery) Serve(ctx context.Context, conn *net.UDPConn) error {
	ctx, cancel := context.WithCancel(ctx)
	out := newOutbox(conn, d.sent)
	var running sync.WaitGroup
	running.Go(func() { out.run(ctx) })
	running.Go(func() {
		<-ctx.Done()
		_ = conn.Close()
	})
	err := d.receive(ctx, conn, out)
	cancel()
	running.Wait()
	d.refusals.close()
	return err
}

func (d *Discovery) sent(err error) {
	if err != nil {
		d.count.failed.Add(1)
		d.options.Logger.Debug("discovery reply not sent", "error", err)
		return
	}
	d.count.answers.Add(1)
}

// receive reads datagrams until the socket is closed. One bad datagram, or an
// error that passes, never ends it.
func (d *Discovery) receive(ctx context.Context, conn *net.UDPConn, out *outbox) error {
	var pause backoff
	datagram := make([]byte, maxQuery+1)
	oob := controlSpace()
	for {
		n, oobn, flags, slave, err := conn.ReadMsgUDPAddrPort(datagram, oob)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EBADF) {
				return fmt.Errorf("receive discovery requests: %w", err)
			}
			d.options.Logger.Warn("receive discovery requests", "error", err)
			pause.wait(ctx)
			continue
		}
		pause.reset()
		slave = netip.AddrPortFrom(slave.Addr().Unmap(), slave.Port())
		version, ok := parseQuery(datagram[:n])
		if !ok || flags&syscall.MSG_TRUNC != 0 || !answerable(slave) {
			d.count.malformed.Add(1)
			continue
		}
		source, _ := askedAddress(oob[:oobn])
		d.answer(out, slave, source, string(version))
	}
}

// answer handles one well-formed request.
func (d *Discovery) answer(out *outbox, slave netip.AddrPort, source netip.Addr, version string) {
	d.count.requests.Add(1)
	now := time.Now()
	asked := source
	if !asked.IsValid() { // a socket that does not say it
		asked = out.conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	}
	offer, err := d.options.Answerer.Answer(Query{Slave: slave, Asked: asked, ERTS: version})
	if err != nil {
		d.count.refused.Add(1)
		if errors.Is(err, ErrUnlogged) {
			return
		}
		d.refusals.log(now, slave.Addr(), err.Error(), "discovery not answered", version)
		return
	}
	s, ok := d.enter(now, slave, offer)
	if !ok {
		d.count.limited.Add(1)
		d.refusals.log(now, slave.Addr(), "too many requests", "discovery not answered", version)
		return
	}
	priority, delay := Pace(s.rank, s.lastRank, s.answered, d.options.Pace)
	a := answer{due: now.Add(delay), to: slave, source: source}
	a.length = len(appendReply(a.bytes[:0], priority, offer.Port, version))
	out.put(now, a)
}

// enter counts one answer in the limits and the searches. It returns the
// search as it was before.
func (d *Discovery) enter(now time.Time, slave netip.AddrPort, offer Offer) (search, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, _ := d.buckets.get(now, slave.Addr())
	ok := b.take(now, d.options.AnswersPerAddress, d.options.AnswerBurst)
	d.buckets.put(now, slave.Addr(), b)
	// One second's worth may come at once: a site that is switched on.
	if !ok || !d.all.take(now, d.options.Answers, d.options.Answers) {
		return search{}, false
	}
	s, known := d.searches.get(now, slave)
	if !known || now.Sub(s.latest) > searchMemory {
		s = search{rank: offer.Rank, lastRank: offer.LastRank}
	}
	next := s
	next.answered++
	next.latest = now
	d.searches.put(now, slave, next)
	return s, true
}
