// Go peers: `peer serve gorilla|coder|gobwas|x` and `peer connect gorilla|coder`; what is asked of them is said in ../../src/peers.rs.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	coder "github.com/coder/websocket"
	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	gorilla "github.com/gorilla/websocket"
	xnet "golang.org/x/net/websocket"
)

const (
	code   = 4321
	reason = "bye"
	pause  = 20 * time.Millisecond
	// What an application still has to send.
	messages = 48
	gap      = 250 * time.Millisecond
)

type job struct {
	URL   string `json:"url"`
	Close int    `json:"close"`
	Count int    `json:"count"`
	Works bool   `json:"works"`
}

type closed struct {
	Code   int     `json:"code"`
	Reason string  `json:"reason"`
	Clean  bool    `json:"wasClean"`
	Ms     float64 `json:"ms"`
}

// Sends for 12 s, and reads nothing.
func work(conn *gorilla.Conn) {
	tick := time.NewTicker(gap)
	defer tick.Stop()
	for range messages {
		<-tick.C
		if conn.WriteMessage(gorilla.TextMessage, []byte("work")) != nil {
			return
		}
	}
}

// What gorilla/websocket has to say of the end.
func status(err error) closed {
	var closing *gorilla.CloseError
	if errors.As(err, &closing) && closing.Code != gorilla.CloseAbnormalClosure {
		return closed{Code: closing.Code, Reason: closing.Text, Clean: true}
	}
	return closed{Code: gorilla.CloseAbnormalClosure}
}

func serveGorilla(w http.ResponseWriter, r *http.Request) {
	conn, err := (&gorilla.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}).Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	fmt.Println("opened")
	switch r.URL.Path {
	case "/client":
	case "/works":
		work(conn)
	default:
		time.Sleep(pause)
		message := gorilla.FormatCloseMessage(code, reason)
		conn.WriteControl(gorilla.CloseMessage, message, time.Now().Add(time.Second))
		// The idiom that is common: Close() right behind.
		if r.URL.Path == "/fin-without-waiting" {
			return
		}
	}
	for err == nil {
		_, _, err = conn.ReadMessage()
	}
	fmt.Println("closed", r.URL.Path, status(err).Code)
}

func serveCoder(w http.ResponseWriter, r *http.Request) {
	conn, err := coder.Accept(w, r, &coder.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer conn.CloseNow()
	fmt.Println("opened")
	if r.URL.Path == "/server" {
		time.Sleep(pause)
		conn.Close(code, reason)
		return
	}
	for err == nil {
		_, _, err = conn.Read(context.Background())
	}
}

// It has frames and no closing handshake of its own: this is what its examples do.
func serveGobwas(w http.ResponseWriter, r *http.Request) {
	conn, _, _, err := ws.UpgradeHTTP(r, w)
	if err != nil {
		return
	}
	defer conn.Close()
	fmt.Println("opened")
	if r.URL.Path != "/client" {
		time.Sleep(pause)
		ws.WriteFrame(conn, ws.NewCloseFrame(ws.NewCloseFrameBody(code, reason)))
		return
	}
	for err == nil {
		// Answers the client's Close frame.
		_, _, err = wsutil.ReadClientData(conn)
	}
	var closing wsutil.ClosedError
	if errors.As(err, &closing) {
		fmt.Println("closed", r.URL.Path, int(closing.Code))
	} else {
		fmt.Println("closed", r.URL.Path, 1006)
	}
}

// Ends TCP right behind its Close frame, and answers every code with 1000.
func serveX(w http.ResponseWriter, r *http.Request) {
	handler := func(conn *xnet.Conn) {
		fmt.Println("opened")
		if r.URL.Path != "/client" {
			time.Sleep(pause)
			conn.WriteClose(code)
			return
		}
		var message []byte
		for xnet.Message.Receive(conn, &message) == nil {
		}
	}
	xnet.Server{Handler: handler}.ServeHTTP(w, r)
}

func connectGorilla(j job) (closed, error) {
	dialer := gorilla.Dialer{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	conn, _, err := dialer.Dial(j.URL, nil)
	if err != nil {
		return closed{}, err
	}
	defer conn.Close()
	begun := time.Now()
	if j.Close != 0 {
		time.Sleep(pause)
		begun = time.Now()
		message := gorilla.FormatCloseMessage(j.Close, "")
		conn.WriteControl(gorilla.CloseMessage, message, time.Now().Add(time.Second))
	}
	if j.Works {
		work(conn)
	}
	for err == nil {
		_, _, err = conn.ReadMessage()
	}
	seen := status(err)
	seen.Ms = float64(time.Since(begun)) / 1e6
	return seen, nil
}

func connectCoder(j job) (closed, error) {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	conn, _, err := coder.Dial(context.Background(), j.URL, &coder.DialOptions{HTTPClient: client})
	if err != nil {
		return closed{}, err
	}
	defer conn.CloseNow()
	begun := time.Now()
	if j.Close != 0 {
		time.Sleep(pause)
		begun = time.Now()
		// It says nil where the closing handshake was completed, and nothing of the answer's code.
		err = conn.Close(coder.StatusCode(j.Close), "")
		ms := float64(time.Since(begun)) / 1e6
		if err != nil {
			return closed{Code: 1006, Ms: ms}, nil
		}
		return closed{Code: j.Close, Clean: true, Ms: ms}, nil
	}
	_, _, err = conn.Read(context.Background())
	seen := closed{Code: 1006, Ms: float64(time.Since(begun)) / 1e6}
	var closing coder.CloseError
	if errors.As(err, &closing) {
		seen.Code, seen.Reason, seen.Clean = int(closing.Code), closing.Reason, true
	}
	return seen, nil
}

func serve(handler http.HandlerFunc) {
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[3])
	if err != nil {
		panic(err)
	}
	fmt.Printf("listening on %d\n", listener.Addr().(*net.TCPAddr).Port)
	if len(os.Args) > 4 {
		http.ServeTLS(listener, handler, os.Args[4], os.Args[5])
	}
	http.Serve(listener, handler)
}

func connect(one func(job) (closed, error)) {
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		var j job
		if err := json.Unmarshal(input.Bytes(), &j); err != nil {
			panic(err)
		}
		closes := make([]closed, j.Count)
		failed := make([]error, j.Count)
		var all sync.WaitGroup
		for i := range closes {
			all.Add(1)
			go func() {
				defer all.Done()
				closes[i], failed[i] = one(j)
			}()
		}
		all.Wait()
		answer := map[string]any{"closes": closes}
		if err := errors.Join(failed...); err != nil {
			answer = map[string]any{"error": err.Error()}
		}
		json.NewEncoder(os.Stdout).Encode(answer)
	}
}

func main() {
	switch os.Args[1] + " " + os.Args[2] {
	case "serve gorilla":
		serve(serveGorilla)
	case "serve coder":
		serve(serveCoder)
	case "serve gobwas":
		serve(serveGobwas)
	case "serve x":
		serve(serveX)
	case "connect gorilla":
		connect(connectGorilla)
	case "connect coder":
		connect(connectCoder)
	}
}
