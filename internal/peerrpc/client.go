package peerrpc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"eboot"
	"eboot/api"
)

// maxAnswer bounds what a server may say of itself: it lists the bundles of the index.
const maxAnswer = 16 << 20

// Dial connects to the server with this id, wherever it is now.
type Dial func(ctx context.Context, server string) (net.Conn, error)

// Client asks other servers. It is safe for use by several goroutines.
type Client struct{ http *http.Client }

// NewTransport returns an HTTP transport whose hosts are ids of servers: for
// http://ID/path it connects to where dial finds that server.
func NewTransport(dial Dial) *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, hostPort string) (net.Conn, error) {
			server, _, err := net.SplitHostPort(hostPort)
			if err != nil {
				return nil, err
			}
			return dial(ctx, server)
		},
		MaxIdleConnsPerHost: 4, MaxConnsPerHost: 64, IdleConnTimeout: time.Minute,
	}
}

// NewClient returns a client; Close it.
func NewClient(dial Dial) *Client { return &Client{http: &http.Client{Transport: NewTransport(dial)}} }

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Info asks a server about itself.
func (c *Client) Info(ctx context.Context, server string) (info ServerInfo, err error) {
	return info, c.ask(ctx, server, "GET", "/v1/server", nil, &info)
}

// Pins returns all pins that a server knows.
func (c *Client) Pins(ctx context.Context, server string) ([]eboot.Pin, error) {
	response, err := c.send(ctx, server, "GET", "/v1/pins", nil, false)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return readList[eboot.Pin](io.LimitReader(response.Body, maxListJSON), "pins", maxPins)
}

// SendPins returns when the server has merged pins.
func (c *Client) SendPins(ctx context.Context, server string, pins []eboot.Pin) error {
	return c.ask(ctx, server, "POST", "/v1/pins", pins, nil)
}

// SendPlans returns when the server has merged plans. eboot.ErrNotFound: it is of a version
// that takes none.
func (c *Client) SendPlans(ctx context.Context, server string, plans []eboot.LearnedPlan) error {
	for some := range slices.Chunk(plans, plansAtOnce) {
		if err := c.ask(ctx, server, "POST", "/v1/plans", some, nil); err != nil {
			return err
		}
	}
	return nil
}

// SendBoots returns when the server has merged boots, of which one message takes 4096.
// eboot.ErrNotFound: it is of a version that takes none.
func (c *Client) SendBoots(ctx context.Context, server string, boots []eboot.Boot) error {
	return c.ask(ctx, server, "POST", "/v1/boots", boots, nil)
}

// SendEvents returns when the server has merged events, likewise.
func (c *Client) SendEvents(ctx context.Context, server string, events []eboot.Event) error {
	return c.ask(ctx, server, "POST", "/v1/events", events, nil)
}

// RestartSlave has the server tell a slave to boot again. eboot.ErrUnavailable: the slave
// keeps no session with it.
func (c *Client) RestartSlave(ctx context.Context, server string, r RestartRequest) error {
	return c.ask(ctx, server, "POST", "/v1/restart", r, nil)
}

// CopyBundle returns when the server holds every blob of the bundles durably.
func (c *Client) CopyBundle(ctx context.Context, server string, r CopyRequest) error {
	return c.ask(ctx, server, "POST", "/v1/copies", r, nil)
}

// ReadIndex asks the leader how far a server must have applied the log.
func (c *Client) ReadIndex(ctx context.Context, leader string) (index uint64, err error) {
	return index, c.ask(ctx, leader, "POST", "/v1/read-index", struct{}{}, &index)
}

// Apply hands an encoded command to the leader and returns the encoded result.
// eboot.ErrUnreachable, ErrNoLeader: it was not proposed; ErrUnknownOutcome: it may be.
func (c *Client) Apply(ctx context.Context, leader string, entry []byte) ([]byte, error) {
	response, err := c.send(ctx, leader, "POST", "/v1/apply", bytes.NewReader(entry), true)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	result, err := io.ReadAll(io.LimitReader(response.Body, maxEntry))
	if err != nil {
		return nil, fmt.Errorf("server %s: the answer was cut off: %v: %w", leader, err, eboot.ErrUnknownOutcome)
	}
	return result, nil
}

// Transfer has the leader hand leadership over.
func (c *Client) Transfer(ctx context.Context, leader, to string) error {
	return c.change(ctx, leader, "/v1/transfer", transferRequest{To: to}, nil)
}

// Remove has the leader remove a server.
func (c *Client) Remove(ctx context.Context, leader string, w api.Write, id string, replace bool) (r api.WriteResult, err error) {
	return r, c.change(ctx, leader, "/v1/remove", removeRequest{ID: id, Replace: replace, Write: w}, &r)
}

// Restore has the leader replace the state by a snapshot, as somebody asked for.
func (c *Client) Restore(ctx context.Context, leader string, by eboot.Actor, snapshot io.Reader, force bool) (info api.SnapshotInfo, err error) {
	query := url.Values{"force": {strconv.FormatBool(force)}}
	if !by.IsZero() {
		query["by"] = []string{by.Name, string(by.Via), by.From}
	}
	response, err := c.send(ctx, leader, "POST", "/v1/restore?"+query.Encode(), snapshot, true)
	if err != nil {
		return info, err
	}
	return info, decode(response, leader, eboot.ErrUnknownOutcome, &info)
}

// ask is for what may be repeated without harm.
func (c *Client) ask(ctx context.Context, server, method, path string, body, answer any) error {
	return c.call(ctx, server, method, path, body, answer, false)
}

func (c *Client) change(ctx context.Context, server, path string, body, answer any) error {
	return c.call(ctx, server, "POST", path, body, answer, true)
}

func (c *Client) call(ctx context.Context, server, method, path string, body, answer any, change bool) error {
	var content io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(data)
	}
	response, err := c.send(ctx, server, method, path, content, change)
	if err != nil {
		return err
	}
	broken := eboot.ErrUnreachable
	if change {
		broken = eboot.ErrUnknownOutcome
	}
	return decode(response, server, broken, answer)
}

func decode(response *http.Response, server string, broken error, answer any) error {
	defer response.Body.Close()
	if answer == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 4<<10)) // so that the connection is used again
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(answer); err != nil {
		return fmt.Errorf("server %s: answer: %v: %w", server, err, broken)
	}
	return nil
}

// send returns an answer that is a success. A change that may have arrived without an
// answer is eboot.ErrUnknownOutcome.
func (c *Client) send(ctx context.Context, server, method, path string, body io.Reader, change bool) (*http.Response, error) {
	var connected atomic.Bool // nothing is sent without a connection
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }}
	request, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), method, "http://"+server+path, body)
	if err != nil {
		return nil, fmt.Errorf("server %s: %v: %w", server, err, eboot.ErrInvalid)
	}
	// The receiver tells repeats apart by request id, so a request that met a
	// connection which was just closed may go again (net/http, Transport).
	request.Header.Set("Idempotency-Key", "true")
	response, err := c.http.Do(request)
	if err != nil {
		switch {
		case !connected.Load():
			return nil, fmt.Errorf("server %s: no connection: %v: %w", server, errors.Unwrap(err), eboot.ErrUnreachable)
		case change:
			return nil, fmt.Errorf("server %s: no answer: %v: %w", server, errors.Unwrap(err), eboot.ErrUnknownOutcome)
		case errors.Is(err, context.DeadlineExceeded):
			return nil, fmt.Errorf("server %s: no answer in time: %w", server, eboot.ErrTimeout)
		}
		return nil, fmt.Errorf("server %s: %v: %w", server, errors.Unwrap(err), eboot.ErrUnreachable)
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNotFound { // what a server knows of fails in another way
		return nil, fmt.Errorf("server %s: it does not know %s %s: %w", server, method, path, eboot.ErrNotFound)
	}
	var described api.ErrorBody
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&described); err != nil {
		described = api.ErrorBody{}
	}
	return nil, api.RestoreError(described, response.StatusCode)
}
