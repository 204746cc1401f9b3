package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"eboot"
)

// Every server of a cluster can do what another can, so a client that knows several
// moves on: when a server cannot be reached, does not answer, has no leader, or
// cannot do it now. So it does when the outcome of a write is not known: the next
// server gets the same request id, so the write is not done twice, and its answer
// tells what became of it. What every server would answer alike (not found,
// conflict, invalid) ends the call.
//
// When all were asked and one of them spoke of something that passes, such as an
// election, they are asked again after a pause, while another round is likely to end
// within retryPatience.

const (
	retryPatience = 3 * time.Second // in all; an election takes less
	firstPause    = 100 * time.Millisecond
	longestPause  = 500 * time.Millisecond
	// answerPatience is how long a server may take to begin its answer while there
	// are others to ask: longer than a server waits for an election or a leader.
	answerPatience = 5 * time.Second
)

// call is one request, repeatable on the next server.
type call struct {
	method, path string
	query        url.Values
	body         any // marshalled as JSON; nil: no body
	write        bool
	once         bool        // a change without request id: never repeated after it may have arrived
	here         bool        // for the first address alone: it is about the server that is asked
	header       http.Header // of a stream, beside the usual ones; nil: none
	accept       []int       // statuses beside 200 whose body is the result
}

// attempt makes a call to one server, which has until wait to begin its answer;
// zero: as long as ctx lasts.
type attempt func(ctx context.Context, e endpoint, wait time.Duration) error

// try makes attempts at one server after the other, beginning with the one that
// answered last, and returns nil at the first success, else the error that tells most.
func (c *Client) try(ctx context.Context, k call, a attempt) error {
	servers, first := c.endpoints, int(c.preferred.Load())
	if k.here {
		servers, first = servers[:1], 0
	}
	end := time.Now().Add(min(c.timeout, retryPatience))
	told := verdict{servers: len(servers)}
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		again, began := false, time.Now()
		for i := range servers {
			at := (first + i) % len(servers)
			err := a(ctx, servers[at], answerWait(ctx, k, len(servers), len(servers)-i, told.reached()))
			moves := movesOn(err) && !(k.once && errors.Is(err, eboot.ErrUnknownOutcome))
			if !moves && !k.here {
				c.preferred.Store(int32(at))
			}
			if err == nil {
				return nil
			}
			told.add(servers[at], err)
			if !moves || ctx.Err() != nil {
				return told.err()
			}
			again = again || mayPass(err, len(servers))
		}
		if !again || time.Now().Add(pause+time.Since(began)).After(end) {
			return told.err()
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return told.err()
		case <-timer.C:
		}
	}
}

// answerWait bounds how long a server that hangs can keep a call from the others,
// and from what a server said already. left counts the servers of this round that
// were not asked, this one included.
func answerWait(ctx context.Context, k call, servers, left int, reached bool) time.Duration {
	if servers == 1 || k.once || left == 1 && !reached {
		return 0
	}
	wait := answerPatience
	if deadline, ok := ctx.Deadline(); ok {
		wait = max(min(wait, time.Until(deadline)/time.Duration(left)), time.Millisecond)
	}
	return wait
}

// movesOn reports whether another server may do better.
func movesOn(err error) bool {
	return rank(err) > 0
}

// mayPass reports whether the same server may do better in a moment. A lone server
// that was not reached is most likely not running or elsewhere: people want to hear
// that at once.
func mayPass(err error, servers int) bool {
	var unreached *unreachableError
	if errors.As(err, &unreached) {
		return servers > 1
	}
	return errors.Is(err, eboot.ErrNoLeader) || errors.Is(err, eboot.ErrUnreachable)
}

// Ranks of errors by how much they tell. Those without one are final.
const (
	rankUnreached = 1 + iota
	rankTimeout
	rankReached // a server said why not
	rankNoLeader
	rankUnknown
)

func rank(err error) int {
	var unreached *unreachableError
	switch {
	case errors.Is(err, eboot.ErrUnknownOutcome):
		return rankUnknown
	case errors.Is(err, eboot.ErrNoLeader):
		return rankNoLeader
	case errors.As(err, &unreached):
		return rankUnreached
	case errors.Is(err, eboot.ErrUnavailable), errors.Is(err, eboot.ErrUnreachable):
		return rankReached
	case errors.Is(err, eboot.ErrTimeout):
		return rankTimeout
	}
	return 0
}

// verdict gathers what several servers said to one call.
type verdict struct {
	servers   int
	most      error // the one that tells most; of equals the latest
	rank      int
	unknown   error               // the latest of those
	last      error               // after unknown: what another server said since, if that was final
	unreached []*unreachableError // the latest of each server
}

func (v *verdict) add(e endpoint, err error) {
	r := rank(err)
	var remote *remoteError
	if v.servers > 1 && r > 0 && errors.As(err, &remote) {
		err = fmt.Errorf("server %s: %w", e.name, err)
	}
	var unreached *unreachableError
	if errors.As(err, &unreached) {
		v.unreached = append(v.unreached, unreached)
	}
	switch {
	case r == rankUnknown:
		v.unknown = err
	case r == 0:
		v.last = err
	case r >= v.rank:
		v.most, v.rank = err, r
	}
}

// reached reports whether a server said why it does not do what was asked.
func (v *verdict) reached() bool { return v.rank >= rankReached }

// err is what the caller hears. That a write may have happened matters more than
// anything that was said after it.
func (v *verdict) err() error {
	switch {
	case v.unknown != nil && v.last != nil:
		return fmt.Errorf("%w (another server said afterwards: %v)", v.unknown, v.last)
	case v.unknown != nil && v.rank >= rankReached:
		return fmt.Errorf("%w (and: %v)", v.unknown, v.most)
	case v.unknown != nil:
		return v.unknown
	case v.last != nil:
		return v.last
	case v.rank == rankUnreached && v.servers > 1:
		return v.noneReached()
	}
	return v.most
}

func (v *verdict) noneReached() error {
	var causes []string
	for _, u := range v.unreached[max(0, len(v.unreached)-v.servers):] {
		causes = append(causes, fmt.Sprintf("%s: %v", u.server, u.cause))
	}
	return fmt.Errorf("none of the %d servers answers (%s); are they running, and are these their API addresses (--address, EBOOT_ADDRESS)?: %w",
		v.servers, strings.Join(causes, "; "), eboot.ErrUnreachable)
}

// do makes a call and decodes the answer into result.
func (c *Client) do(ctx context.Context, k call, result any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var body []byte
	if k.body != nil {
		var err error
		if body, err = json.Marshal(k.body); err != nil {
			return err
		}
	}
	header := c.header(k.write)
	return c.try(ctx, k, func(ctx context.Context, e endpoint, wait time.Duration) error {
		response, err := e.begin(ctx, wait, k, header, bytes.NewReader(body))
		if err != nil {
			return err
		}
		c.hearStale(response)
		err = decode(response, k.accept, result)
		var refused *remoteError
		switch {
		case err == nil || errors.As(err, &refused):
			return err
		case k.write || k.once:
			return fmt.Errorf("server %s: %w", e.name, err)
		}
		return &unreachableError{server: e.name, cause: errors.New("the answer was cut off")}
	})
}

func (c *Client) hearStale(response *http.Response) {
	if reason := response.Header.Get(headerStale); reason != "" && c.onStale != nil {
		c.onStale(reason)
	}
}

// open makes a call whose answer is a stream: it returns when that begins, with the
// name of the server, and bounds only the wait for it. The caller closes the body.
func (c *Client) open(ctx context.Context, k call) (opened *http.Response, server string, err error) {
	err = c.try(ctx, k, func(ctx context.Context, e endpoint, wait time.Duration) error {
		if wait == 0 {
			wait = c.timeout
		}
		header := c.header(k.write)
		maps.Copy(header, k.header)
		response, err := e.begin(ctx, wait, k, header, nil)
		if err != nil {
			return err
		}
		if response.StatusCode != http.StatusOK {
			defer response.Body.Close()
			return readError(response)
		}
		opened, server = response, e.name
		return nil
	})
	return opened, server, err
}

// pick returns a server that answers: work of several requests stays with one.
func (c *Client) pick(ctx context.Context) (picked endpoint, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	k := call{method: "GET", path: "/livez"}
	err = c.try(ctx, k, func(ctx context.Context, e endpoint, wait time.Duration) error {
		response, err := e.begin(ctx, wait, k, nil, nil)
		if err != nil {
			return err
		}
		picked = e
		return decode(response, nil, nil)
	})
	return picked, err
}
