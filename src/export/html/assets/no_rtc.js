for(const name of["RTCPeerConnection","webkitRTCPeerConnection"])delete window[name];
