package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"eboot"
)

// DefaultAddress is where a server's API listens unless it is configured otherwise.
const DefaultAddress = "http://127.0.0.1:4380"

// DefaultTimeout bounds a call that says nothing else.
const DefaultTimeout = 30 * time.Second

// socketHost is the Host header of requests over a Unix socket.
const socketHost = "eboot.socket"

// ClientOptions say where the servers are.
type ClientOptions struct {
	// Addresses: http://HOST:PORT or unix:///PATH, tried in order. Empty: DefaultAddress.
	Addresses []string
	// Timeout bounds every call but uploads, downloads and streams. Zero: DefaultTimeout.
	Timeout time.Duration
	// ExpectGeneration accompanies every write; nil: none.
	ExpectGeneration *uint64
}

// Client calls the admin API. Its methods return errors that wrap the sentinel
// the server meant; eboot.ErrUnreachable when no address could be reached;
// eboot.ErrUnknownOutcome when a write was sent and no answer came back.
// It may be used by several goroutines.
type Client struct {
	endpoints []endpoint
	timeout   time.Duration
	expect    *uint64
}

type endpoint struct {
	name string // as the user wrote it
	base string
	http *http.Client
}

// NewClient checks the addresses and connects to none of them.
// eboot.ErrInvalid names the address that cannot be understood.
func NewClient(o ClientOptions) (*Client, error) {
	c := &Client{timeout: o.Timeout, expect: o.ExpectGeneration}
	if c.timeout == 0 {
		c.timeout = DefaultTimeout
	}
	addresses := o.Addresses
	if len(addresses) == 0 {
		addresses = []string{DefaultAddress}
	}
	for _, a := range addresses {
		e, err := newEndpoint(a)
		if err != nil {
			return nil, err
		}
		c.endpoints = append(c.endpoints, e)
	}
	return c, nil
}

func newEndpoint(address string) (endpoint, error) {
	u, err := url.Parse(address)
	if err != nil {
		return endpoint{}, fmt.Errorf("address %q: %v: %w", address, err, eboot.ErrInvalid)
	}
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     30 * time.Second,
	}
	e := endpoint{name: address, http: &http.Client{Transport: transport}}
	switch {
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		dialer := &net.Dialer{Timeout: 5 * time.Second}
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", u.Path)
		}
		e.base = "http://" + socketHost
	case u.Scheme == "http" && u.Host != "" && (u.Path == "" || u.Path == "/") && u.RawQuery == "":
		e.base = "http://" + u.Host
	default:
		return endpoint{}, fmt.Errorf("address %q: want http://HOST:PORT or unix:///PATH: %w", address, eboot.ErrInvalid)
	}
	return e, nil
}

// Close lets go of idle connections.
func (c *Client) Close() {
	for _, e := range c.endpoints {
		e.http.CloseIdleConnections()
	}
}

// call is one request, repeatable on the next server.
type call struct {
	method, path string
	query        url.Values
	body         any // marshalled as JSON; nil: no body
	write        bool
	accept       []int // statuses beside 200 whose body is the result
}

// do sends the call to the first server that can be reached, and decodes the
// answer into result. A write keeps its request id across servers.
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
	var last error
	for _, e := range c.endpoints {
		response, err := e.send(ctx, k.method, k.path, k.query, header, bytes.NewReader(body), k.write)
		if err != nil {
			if last == nil || errors.Is(err, eboot.ErrUnknownOutcome) {
				last = err
			}
			if ctx.Err() != nil {
				break
			}
			continue
		}
		return decode(response, k.accept, result)
	}
	return last
}

func (c *Client) header(write bool) http.Header {
	h := http.Header{}
	if write {
		h.Set(headerRequestID, uuid.NewString())
		if c.expect != nil {
			h.Set(headerExpectGeneration, strconv.FormatUint(*c.expect, 10))
		}
	}
	return h
}

// send returns eboot.ErrUnreachable when nothing was sent, or when repeating
// does no harm; for a write that may have arrived, eboot.ErrUnknownOutcome.
func (e endpoint) send(ctx context.Context, method, path string, query url.Values, header http.Header, body io.Reader, write bool) (*http.Response, error) {
	target := e.base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %v: %w", method, path, err, eboot.ErrInvalid)
	}
	for name, values := range header {
		request.Header[name] = values
	}
	response, err := e.http.Do(request)
	if err == nil {
		return response, nil
	}
	var urlError *url.Error
	if errors.As(err, &urlError) {
		err = urlError.Err
	}
	var dial *net.OpError
	notSent := errors.As(err, &dial) && dial.Op == "dial"
	switch {
	case write && !notSent:
		return nil, fmt.Errorf("server %s: the request was sent and no answer came: %v: %w", e.name, err, eboot.ErrUnknownOutcome)
	case errors.Is(err, context.DeadlineExceeded) && !notSent:
		return nil, fmt.Errorf("server %s: no answer in time: %w", e.name, eboot.ErrTimeout)
	}
	return nil, fmt.Errorf("server %s: %v; is the server running, and is this its API address (--address, EBOOT_ADDRESS)?: %w", e.name, err, eboot.ErrUnreachable)
}

func decode(response *http.Response, accept []int, result any) error {
	defer response.Body.Close()
	ok := response.StatusCode == http.StatusOK
	for _, status := range accept {
		ok = ok || response.StatusCode == status
	}
	if !ok {
		return readError(response)
	}
	if result == nil {
		return nil
	}
	if err := json.NewDecoder(response.Body).Decode(result); err != nil {
		// The server said that it was done; only what it said of it is lost.
		return fmt.Errorf("answer: %v: %w", err, eboot.ErrUnknownOutcome)
	}
	return nil
}

func readError(response *http.Response) error {
	var body ErrorBody
	data, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil {
		err = json.Unmarshal(data, &body)
	}
	if err != nil {
		body = ErrorBody{}
	}
	return restore(body.Error, response.StatusCode)
}

// Whitelist returns every entry in order of prefix.
func (c *Client) Whitelist(ctx context.Context) (entries []eboot.WhitelistEntry, err error) {
	return entries, c.do(ctx, call{method: "GET", path: "/v1/whitelist"}, &entries)
}

// Allow adds or replaces whitelist entries, all or none.
func (c *Client) Allow(ctx context.Context, entries ...eboot.WhitelistEntry) (r WriteResult, err error) {
	return r, c.do(ctx, call{method: "POST", path: "/v1/whitelist", body: AllowRequest{Entries: entries}, write: true}, &r)
}

// Deny removes whitelist entries, all or none.
func (c *Client) Deny(ctx context.Context, prefixes ...netip.Prefix) (r WriteResult, err error) {
	return r, c.do(ctx, call{method: "POST", path: "/v1/whitelist/deny", body: DenyRequest{Prefixes: prefixes}, write: true}, &r)
}

// Check says whether slave is whitelisted.
func (c *Client) Check(ctx context.Context, slave netip.Addr) (r SlaveCheck, err error) {
	return r, c.do(ctx, call{method: "GET", path: "/v1/slaves/" + slave.String() + "/check"}, &r)
}

// Explain says step by step why slave would or would not boot.
func (c *Client) Explain(ctx context.Context, slave netip.Addr) (r eboot.Explanation, err error) {
	return r, c.do(ctx, call{method: "GET", path: "/v1/slaves/" + slave.String() + "/explain"}, &r)
}

// Channels returns every channel.
func (c *Client) Channels(ctx context.Context) (channels []eboot.Channel, err error) {
	return channels, c.do(ctx, call{method: "GET", path: "/v1/channels"}, &channels)
}

// Channel returns one channel, or eboot.ErrNotFound.
func (c *Client) Channel(ctx context.Context, name string) (r eboot.Channel, err error) {
	return r, c.do(ctx, call{method: "GET", path: "/v1/channels/" + url.PathEscape(name)}, &r)
}

// SetChannel moves a channel to a bundle.
func (c *Client) SetChannel(ctx context.Context, name string, set ChannelSet) (r WriteResult, err error) {
	return r, c.do(ctx, call{method: "PUT", path: "/v1/channels/" + url.PathEscape(name), body: set, write: true}, &r)
}

// Bundles returns every bundle in order of name, version and ERTS.
func (c *Client) Bundles(ctx context.Context) (bundles []BundleDetail, err error) {
	return bundles, c.do(ctx, call{method: "GET", path: "/v1/bundles"}, &bundles)
}

// Bundle returns the bundles of ref, one for each ERTS version, or eboot.ErrNotFound.
func (c *Client) Bundle(ctx context.Context, ref eboot.Ref) (details []BundleDetail, err error) {
	return details, c.do(ctx, call{method: "GET", path: bundlePath(ref)}, &details)
}

// RemoveBundle takes a bundle out, for one ERTS version or (empty) all.
func (c *Client) RemoveBundle(ctx context.Context, ref eboot.Ref, erts string, force bool) (r WriteResult, err error) {
	query := url.Values{}
	if erts != "" {
		query.Set("erts", erts)
	}
	if force {
		query.Set("force", "true")
	}
	return r, c.do(ctx, call{method: "DELETE", path: bundlePath(ref), query: query, write: true}, &r)
}

func bundlePath(ref eboot.Ref) string { return "/v1/bundles/" + url.PathEscape(ref.String()) }

// VerifyBundle has a server hash every blob of ref; progress may be nil. The
// result has Done set.
func (c *Client) VerifyBundle(ctx context.Context, ref eboot.Ref, progress func(VerifyProgress)) (VerifyProgress, error) {
	var last VerifyProgress
	err := c.stream(ctx, "POST", bundlePath(ref)+"/verify", func(line []byte) error {
		last = VerifyProgress{}
		if err := json.Unmarshal(line, &last); err != nil {
			return err
		}
		if progress != nil {
			progress(last)
		}
		return nil
	})
	if err == nil && !last.Done {
		err = fmt.Errorf("verify %s: the server broke the reply off; see its log: %w", ref, eboot.ErrUnavailable)
	}
	return last, err
}

// Boots returns the boots a server remembers, newest first; an invalid address
// means those of all slaves.
func (c *Client) Boots(ctx context.Context, slave netip.Addr) (boots []eboot.Boot, err error) {
	query := url.Values{}
	if slave.IsValid() {
		query.Set("slave", slave.String())
	}
	return boots, c.do(ctx, call{method: "GET", path: "/v1/boots", query: query}, &boots)
}

// FollowBoots calls each for every boot that begins or changes phase, until ctx
// ends (nil) or the server goes away (eboot.ErrUnreachable).
func (c *Client) FollowBoots(ctx context.Context, each func(eboot.Boot) error) error {
	err := c.stream(ctx, "GET", "/v1/boots/follow", func(line []byte) error {
		var b eboot.Boot
		if err := json.Unmarshal(line, &b); err != nil {
			return err
		}
		return each(b)
	})
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		return fmt.Errorf("follow boots: the server ended the stream: %w", eboot.ErrUnreachable)
	}
	return err
}

// stream reads a reply of JSON lines.
func (c *Client) stream(ctx context.Context, method, path string, each func(line []byte) error) error {
	e, err := c.pick(ctx)
	if err != nil {
		return err
	}
	response, err := e.send(ctx, method, path, nil, nil, nil, false)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return readError(response)
	}
	scanner := bufio.NewScanner(response.Body)
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		if err := each(scanner.Bytes()); err != nil {
			return err
		}
	}
	if err := scanner.Err(); err != nil {
		return fmt.Errorf("server %s: stream: %v: %w", e.name, err, eboot.ErrUnreachable)
	}
	return nil
}

// pick returns the first server that answers: work of several requests stays
// with one server.
func (c *Client) pick(ctx context.Context) (endpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var first error
	for _, e := range c.endpoints {
		response, err := e.send(ctx, "GET", "/livez", nil, nil, nil, false)
		if err == nil {
			if err = decode(response, nil, nil); err == nil {
				return e, nil
			}
		}
		if first == nil {
			first = err
		}
	}
	return endpoint{}, first
}

// Status returns what a server says of itself and its Raft group.
func (c *Client) Status(ctx context.Context) (r eboot.ClusterStatus, err error) {
	return r, c.do(ctx, call{method: "GET", path: "/v1/cluster"}, &r)
}

// Readiness says whether a server can boot slaves at once.
func (c *Client) Readiness(ctx context.Context) (r eboot.Readiness, err error) {
	return r, c.do(ctx, call{method: "GET", path: "/v1/cluster/ready", accept: []int{http.StatusServiceUnavailable}}, &r)
}

// SaveSnapshot writes the replicated state to w. A snapshot that was cut off is
// eboot.ErrUnreachable.
func (c *Client) SaveSnapshot(ctx context.Context, w io.Writer) (SnapshotInfo, error) {
	var info SnapshotInfo
	e, err := c.pick(ctx)
	if err != nil {
		return info, err
	}
	response, err := e.send(ctx, "GET", "/v1/snapshot", nil, nil, nil, false)
	if err != nil {
		return info, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return info, readError(response)
	}
	if err := json.Unmarshal([]byte(response.Header.Get("Eboot-Snapshot")), &info); err != nil {
		return info, fmt.Errorf("snapshot: answer without description: %w", eboot.ErrUnavailable)
	}
	n, err := io.Copy(w, response.Body)
	if err == nil && n != response.ContentLength {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return info, fmt.Errorf("snapshot: %v: %w", err, eboot.ErrUnreachable)
	}
	return info, nil
}

// RestoreSnapshot replaces the replicated state by what r holds.
func (c *Client) RestoreSnapshot(ctx context.Context, r io.Reader, force bool) (SnapshotInfo, error) {
	var info SnapshotInfo
	e, err := c.pick(ctx)
	if err != nil {
		return info, err
	}
	query := url.Values{"force": {strconv.FormatBool(force)}}
	response, err := e.send(ctx, "POST", "/v1/snapshot", query, c.header(true), r, true)
	if err != nil {
		return info, err
	}
	return info, decode(response, nil, &info)
}

// ParseAddresses splits what EBOOT_ADDRESS and --address hold: addresses
// separated by commas or spaces. A bare HOST:PORT means http.
func ParseAddresses(text string) []string {
	fields := strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
	for i, f := range fields {
		if !strings.Contains(f, "://") {
			fields[i] = "http://" + f
		}
	}
	return fields
}
